"""A tokenizer that says nothing: V opaque names and no merges.

Engines want one to start. Text cannot be encoded with it, so nobody sends plain text to an obfuscated model by mistake, and what
an engine decodes into logs is a list of names.

Notation: V vocabulary.
"""

from __future__ import annotations

from typing import Any, Final

NAMES: Final = ("tokenizer.json", "tokenizer_config.json")


def token_name(token: int) -> str:
    """The opaque name of an id."""
    return f"<{token}>"


def tokenizer_files(vocabulary: int, special: dict[str, int], longest: int) -> dict[str, dict[str, Any]]:
    """Contents of ``tokenizer.json`` and ``tokenizer_config.json``.

    Args:
        vocabulary: V.
        special: ``eos_token`` and the like → id as the server knows it.
        longest: positions the model takes.
    """
    added = [
        {
            "id": token, "content": token_name(token), "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for token in sorted(set(special.values()))
    ]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        # No name for unknown words: encoding text is an error, not a row of <unk>.
        "model": {
            "type": "WordLevel",
            "vocab": {token_name(token): token for token in range(vocabulary)},
            "unk_token": "",
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        **{name: token_name(token) for name, token in sorted(special.items())},
    }
    return dict(zip(NAMES, (tokenizer, config), strict=True))
