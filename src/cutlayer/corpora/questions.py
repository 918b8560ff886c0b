"""Two hundred questions of our own, fifty each of the kind people ask about health, law, money and private life.

People, firms and numbers in them are invented. ``attributes["domain"]`` is medical, legal, finance or private.
"""

from __future__ import annotations

from importlib.resources import files

from cutlayer.corpora.prompts import Prompt, parse_prompts


def questions() -> list[Prompt]:
    """All of them, 16 to 64 tokens each in common tokenizers."""
    return parse_prompts(files("cutlayer.corpora").joinpath("questions.jsonl").read_bytes(), "questions.jsonl")
