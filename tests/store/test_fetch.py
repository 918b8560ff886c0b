"""Downloads: whole, resumed, cut short, wrong, oversized, from servers with and without ranges."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import httpx2
import pytest

from cutlayer.errors import DownloadError, IntegrityError
from cutlayer.store import fetch
from cutlayer.store.fetch import download
from cutlayer.store.index import IndexSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BODY = bytes(range(256)) * 4000  # 1 MB, several chunks
DIGEST = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "file.bin"


@pytest.fixture
def part(target: Path) -> Path:
    return target.with_name("file.bin.part")


@pytest.fixture
def get(site, target: Path) -> Iterator[Callable[..., list[tuple[int, int]]]]:
    """Download `url` to `target`; returns the progress that was reported."""
    with httpx2.Client(timeout=5) as client:

        def run(url: str, sha256: str = DIGEST, size: int = len(BODY)) -> list[tuple[int, int]]:
            seen: list[tuple[int, int]] = []
            download(
                url,
                target,
                sha256=sha256,
                size=size,
                client=client,
                progress=lambda done, total: seen.append((done, total)),
            )
            return seen

        yield run


def test_whole_file_arrives_under_its_name_only_when_verified(site, get, target: Path, part: Path) -> None:
    seen = get(site.offer("/file", BODY))
    assert target.read_bytes() == BODY
    assert not part.exists()
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_truncated_download_keeps_what_arrived_and_resumes_there(site, get, target: Path, part: Path) -> None:
    url = site.offer("/file", BODY)
    site.cut_after = 700_000
    with pytest.raises(DownloadError, match="the next attempt resumes"):
        get(url)
    kept = part.stat().st_size
    assert 0 < kept <= 700_000
    assert not target.exists()
    site.cut_after = None
    seen = get(url)
    assert target.read_bytes() == BODY
    assert seen[0] == (kept, len(BODY))
    assert site.asked_for("/file") == [None, f"bytes={kept}-"]


def test_interrupted_by_the_user_then_resumed(site, target: Path, part: Path, get) -> None:
    url = site.offer("/file", BODY)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with httpx2.Client() as client, pytest.raises(KeyboardInterrupt):
        download(url, target, sha256=DIGEST, size=len(BODY), client=client, progress=stop)
    kept = part.stat().st_size
    assert kept > len(BODY) // 2
    assert get(url)[0] == (kept, len(BODY))
    assert target.read_bytes() == BODY


def test_server_without_ranges_starts_over(site, get, target: Path, part: Path) -> None:
    site.ranges = False
    part.parent.mkdir()
    part.write_bytes(BODY[:1000])
    assert get(site.offer("/file", BODY))[0] == (0, len(BODY))
    assert target.read_bytes() == BODY


def test_server_that_refuses_the_range_is_asked_for_the_whole(site, get, target: Path, part: Path) -> None:
    site.refuse_ranges = True
    part.parent.mkdir()
    part.write_bytes(BODY[:1000])
    assert get(site.offer("/file", BODY))[0] == (0, len(BODY))
    assert target.read_bytes() == BODY
    assert site.asked_for("/file") == ["bytes=1000-", None]


def test_a_complete_part_is_only_verified(site, get, target: Path, part: Path) -> None:
    part.parent.mkdir()
    part.write_bytes(BODY)
    get(site.offer("/file", BODY))
    assert target.read_bytes() == BODY
    assert site.asked == []


def test_a_part_larger_than_pinned_is_thrown_away(site, get, target: Path, part: Path) -> None:
    part.parent.mkdir()
    part.write_bytes(BODY + b"x")
    get(site.offer("/file", BODY))
    assert target.read_bytes() == BODY
    assert site.asked_for("/file") == [None]


def test_wrong_digest_names_both_and_leaves_nothing(site, get, target: Path, part: Path) -> None:
    other = b"x" + BODY[1:]
    with pytest.raises(IntegrityError) as caught:
        get(site.offer("/file", other))
    assert hashlib.sha256(other).hexdigest() in str(caught.value)
    assert DIGEST in str(caught.value)
    assert not target.exists()
    assert not part.exists()


def test_a_longer_file_is_refused_before_it_fills_the_disk(site, get, target: Path, part: Path) -> None:
    with pytest.raises(IntegrityError, match="longer than the pinned 1000 bytes"):
        get(site.offer("/file", BODY), size=1000)
    assert not part.exists()


def test_a_shorter_file_is_told_apart_from_a_wrong_one(site, get) -> None:
    with pytest.raises(DownloadError, match=f"ended after 500 of {len(BODY)} bytes"):
        get(site.offer("/file", BODY[:500]))


def test_unreachable_server_keeps_the_part(get, part: Path) -> None:
    part.parent.mkdir()
    part.write_bytes(BODY[:1000])
    with pytest.raises(DownloadError, match=r"failed: .*refused.*resumes"):
        get("http://127.0.0.1:1/file")
    assert part.read_bytes() == BODY[:1000]


def test_missing_file(site, get) -> None:
    with pytest.raises(DownloadError, match="answered HTTP 404"):
        get(f"{site.url}/absent")


def test_messages_never_hold_credentials(site, get) -> None:
    url = site.url.replace("http://", "http://user:s3cret@")
    with pytest.raises(DownloadError) as caught:
        get(f"{url}/absent")
    assert "s3cret" not in str(caught.value)


def test_a_file_of_this_machine(get, target: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(BODY)
    get((tmp_path / "a file").as_uri())
    assert target.read_bytes() == BODY


def test_proxy_without_scheme_is_used(site, entry, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip accepts ``host:port``; a proxy is asked for the absolute URL."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy")
    proxy = site.url.removeprefix("http://")
    monkeypatch.setattr(fetch, "pip_settings", lambda: IndexSettings(index_url="http://index.test/simple", proxy=proxy))
    with pytest.raises(DownloadError, match="answered HTTP 404"):
        fetch.fetch(entry.source, target.parent)
    assert [path for path, _ in site.asked] == ["http://index.test/simple/tiny-model/"]


@pytest.mark.parametrize("setting", [{"cert": "/absent.pem"}, {"proxy": "ftp://user:s3cret@host"}])
def test_unusable_pip_settings(entry, target: Path, monkeypatch: pytest.MonkeyPatch, setting: dict[str, str]) -> None:
    monkeypatch.setattr(fetch, "pip_settings", lambda: IndexSettings(index_url="http://index.test/simple", **setting))
    with pytest.raises(DownloadError, match="pip config list") as caught:
        fetch.fetch(entry.source, target.parent)
    assert "s3cret" not in str(caught.value)
