"""Models of the Hugging Face hub, fetched whole into the hub's own cache.

Only formats that cannot carry code are taken: JSON, chat templates and safetensors, never pickled weights (``*.bin``).
All shards are fetched also where only some layers will be run: the check that client and server hold the same model
reads the headers of every shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cutlayer.errors import DownloadError, InputError, ModelNotFoundError, StoreError
from cutlayer.models.checkpoint import Checkpoint, read_settings

HUB_PREFIX: Final = "hf:"

# `model*` and the top level alone leave out second copies of the weights in other layouts.
_WANTED: Final = ("*.json", "*.jinja", "model*.safetensors")
_UNWANTED: Final = ("*/*",)


def from_hub(name: str) -> Path:
    """Return the directory of ``hf:ORG/NAME[@REVISION]``, fetching what is missing.

    Raises:
        InputError: not of that form.
        ModelNotFoundError: the hub has no such repository or revision.
        DownloadError: the hub could not be reached or answered badly, or the repository holds no safetensors.
    """
    return _complete(_fetch(name, _WANTED), name)


def config_from_hub(name: str) -> Path:
    """Return a directory that holds at least the ``config.json`` of ``hf:ORG/NAME[@REVISION]``, fetching that alone.

    Raises:
        As `from_hub`.
    """
    return _fetch(name, ("config.json",))


def _fetch(name: str, wanted: tuple[str, ...]) -> Path:
    from huggingface_hub import errors, snapshot_download  # most runs never ask the hub

    repository, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    if repository.count("/") != 1:
        raise InputError(f"{name!r} is not of the form {HUB_PREFIX}ORG/NAME or {HUB_PREFIX}ORG/NAME@REVISION")
    try:
        directory = snapshot_download(
            repository, revision=revision or None, allow_patterns=list(wanted), ignore_patterns=list(_UNWANTED)
        )
    except errors.HFValidationError as error:
        raise InputError(f"{name!r} is no repository name: {error}") from error
    except errors.GatedRepoError as error:
        raise DownloadError(f"{name} is gated: accept its licence on the hub, then `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repository} has no revision {revision!r}; without @REVISION: the newest") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"the hub has no repository {repository!r}, or it is private; check the name or `hf auth login`"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadError(
            f"cannot reach the hub for {name}, and it is not in the hub's cache; "
            "check the network, or give the directory of a copy"
        ) from error
    except Exception as error:  # the hub's client lets errors of its transport libraries through
        raise DownloadError(f"fetching {name} from the hub failed: {type(error).__name__}: {error}") from error
    return Path(directory)


def _complete(directory: Path, name: str) -> Path:
    """Offline, the hub's client returns whatever part of a snapshot it has."""
    try:
        read_settings(directory)
        Checkpoint(directory)
    except StoreError as error:
        raise DownloadError(f"{name} is incomplete or no safetensors model: {error}") from error
    return directory
