"""The ids that end an answer, as a checkpoint's own files name them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from cutlayer.errors import UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedConfig

GENERATION_CONFIG: Final = "generation_config.json"


def stop_ids(directory: Path, config: PreTrainedConfig) -> tuple[int, ...]:
    """Of ``generation_config.json``, else of ``config.json``; none where both are silent.

    Raises:
        UnsupportedModelError: the file is no JSON object, or an id no id of the vocabulary.
    """
    found = read_generation(directory).get("eos_token_id", getattr(config, "eos_token_id", None))
    return known_ids(found, config.vocab_size)


def read_generation(directory: Path) -> dict[str, Any]:
    """``generation_config.json``, empty where there is none.

    Raises:
        UnsupportedModelError: it is no JSON object.
    """
    file = directory / GENERATION_CONFIG
    if not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"cannot read {file}: {error}") from error
    if not isinstance(held, dict):
        raise UnsupportedModelError(f"{file} holds a {type(held).__name__}, not an object")
    return held


def known_ids(value: object, vocabulary: int) -> tuple[int, ...]:
    """One id, a list of them or None, as a tuple. −1, by which some checkpoints say "none", is left out.

    Raises:
        UnsupportedModelError: something else, or outside the vocabulary.
    """
    listed: list[object] = value if isinstance(value, list) else [] if value is None else [value]
    found = []
    for token in listed:
        if not isinstance(token, int) or isinstance(token, bool) or not -1 <= token < vocabulary:
            raise UnsupportedModelError(f"a special token id is {token!r}, outside a vocabulary of {vocabulary}")
        found.append(token)
    return tuple(token for token in found if token >= 0)
