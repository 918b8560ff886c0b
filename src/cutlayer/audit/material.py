"""What an audit works on: the victim's prompts and the attacker's own text, as token ids.

Prompts are sent raw, without chat template: every token counts, and none is known beforehand.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import torch

from cutlayer.audit.cell_record import Owned, Prompts
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cutlayer.corpora.prompts import Prompt

    Encode = Callable[[str], list[int]]

WINDOW: Final = 64
"""Tokens per sequence of the attacker's own text."""
MOST_PAIRS: Final = 10_000_000
MAX_TEXT_BYTES: Final = 256 << 20


class Item(NamedTuple):
    """One prompt."""

    id: str
    ids: list[int]
    entities: list[str]
    canary: bool


class Material(NamedTuple):
    """Prompts and where they are from."""

    items: list[Item]
    prompts: Prompts


def victims(
    encode: Encode, key: bytes, prompts: Path | None, limit: int | None, canaries: int, seed: int = 0
) -> Material:
    """The prompts to attack.

    Args:
        encode: text → ids.
        key: of the digest.
        prompts: JSON Lines; None takes the study's own.
        limit: the first so many of the file, or so many of the study's (default 50).
        canaries: how many prompts with planted secrets to add.
        seed: of the choice.

    Raises:
        InputError: the file is malformed, or no prompts are left.
    """
    chosen, source = _chosen(encode, prompts, limit, seed)
    planted = _planted(canaries, seed)
    items = [
        Item(prompt.id, encode(prompt.text), list(prompt.entities), prompt.attributes.get("source") == "canary")
        for prompt in (*chosen, *planted)
    ]
    if not items:
        raise InputError("no prompts to attack; give --prompts FILE, a --limit above 0 or --canaries")
    if len({item.id for item in items}) < len(items):
        raise InputError("two prompts have the same id; rename those of your own that begin with 'audit-canary'")
    lengths = [len(item.ids) for item in items]
    content = msgspec.json.encode([(prompt.id, prompt.text, prompt.entities) for prompt in [*chosen, *planted]])
    return Material(
        items,
        Prompts(
            source=source + (f", and {len(planted)} prompts with planted secrets" if planted else ""),
            count=len(items),
            canaries=sum(item.canary for item in items),
            shortest=min(lengths),
            longest=max(lengths),
            digest=hmac.new(key, content, hashlib.sha256).hexdigest()[:32],
        ),
    )


def attackers(
    encode: Encode, vocabulary: int, file: Path | None, pairs: int, seed: int = 0
) -> tuple[torch.Tensor, Owned]:
    """The attacker's own text, [S, T] ids.

    Args:
        encode: text → ids.
        vocabulary: how many ids there are.
        file: plain text in UTF-8; None takes encyclopedia text no prompt is from, or random ids where none is installed.
        pairs: tokens wanted.
        seed: of the choice.

    Raises:
        InputError: the file is unreadable or has less than one window of text.
    """
    if not WINDOW <= pairs <= MOST_PAIRS:
        raise InputError(f"--pairs is {pairs}; it must be between {WINDOW} and {MOST_PAIRS:,}")
    if file is None:
        from cutlayer.corpora.study import attacker_text

        rows, source = attacker_text(encode, pairs, WINDOW, seed, vocabulary=vocabulary)
    else:
        rows, source = _windows(encode(_text(file)), pairs), f"{file.name}, given"
        if not rows:
            raise InputError(f"{file} has less than {WINDOW} tokens; the attacker needs more text than that")
    ids = torch.tensor(rows)  # [S, T]
    digest = hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:32]
    return ids, Owned(source=source, pairs=ids.numel(), length=ids.shape[1], digest=digest)


def _chosen(encode: Encode, prompts: Path | None, limit: int | None, seed: int) -> tuple[Sequence[Prompt], str]:
    if limit is not None and limit < 0:
        raise InputError(f"--limit is {limit}; it must be 0 or more")
    if prompts is not None:
        from cutlayer.corpora.prompts import read_prompts

        return read_prompts(prompts)[:limit], f"{prompts.name}, given"
    from cutlayer.corpora.study import describe, study_prompts

    count = 50 if limit is None else limit
    if not count:
        return [], "none"
    chosen = study_prompts(count, seed, encode)
    return chosen, f"the study's own: {describe(chosen)}"


def _planted(count: int, seed: int) -> Sequence[Prompt]:
    if not count:
        return []
    from cutlayer.corpora.canaries import canary_prompts

    return canary_prompts(count, seed, "audit-canary")


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(f"{file} is longer than {MAX_TEXT_BYTES:,} bytes; give a part of it")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {file} as UTF-8 text: {error}") from None


def _windows(ids: list[int], pairs: int) -> list[list[int]]:
    starts = range(0, min(len(ids), pairs) - WINDOW + 1, WINDOW)
    return [ids[start : start + WINDOW] for start in starts]
