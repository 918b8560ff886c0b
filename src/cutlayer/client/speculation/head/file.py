"""A trained draft head on disk: safetensors, with a card that says which model, cut and output it is for.

Holds the tensors of `DraftHead.trained` in bfloat16 and the token ids of the output in int32, nothing of the model. Everything is
checked before it is used: a file may come from a stranger, and one for another model would fit by its shapes alone.

Notation: R tokens of the head's output, r rank.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cutlayer import config
from cutlayer.client.speculation.head.network import DraftHead
from cutlayer.errors import InputError, WeightsError
from cutlayer.types import Cut

if TYPE_CHECKING:
    from typing import Any

    from cutlayer.client.trusted import Trusted

_CARD: Final = "cutlayer.draft_head"
_VOCABULARY: Final = "vocabulary"
_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a head is for, and where it comes from."""

    format: Literal[1] = 1
    fingerprint: str
    """Of the model."""
    cut: Cut
    outputs: _Size
    """R"""
    rank: _Size
    """r"""
    made: dict[str, str | int | float | None] = {}
    """How it was trained, for people."""


def save_head(head: DraftHead, trusted: Trusted, made: dict[str, str | int | float | None], path: Path) -> None:
    """Write the head, replacing what was there once it is complete.

    Raises:
        InputError: it cannot be written.
    """
    card = Card(
        fingerprint=trusted.info.fingerprint,
        cut=trusted.cut,
        outputs=len(head.vocabulary),
        rank=head.rank,
        made=made,
    )
    tensors = {name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in head.trained().items()}
    tensors[_VOCABULARY] = head.vocabulary.to("cpu", torch.int32)
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, {_CARD: msgspec.json.encode(card).decode()})
        os.replace(partial, path)  # noqa: PTH105
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot write {path}: {error}") from error


def find_head(trusted: Trusted) -> Path | None:
    """The head for this model and cut: the user's own, else one that came with the package, else None."""
    own = own_head(trusted)
    return next((place for place in (own, Path(__file__).parent / "heads" / own.name) if place.is_file()), None)


def own_head(trusted: Trusted) -> Path:
    """Where the user's own head for this model and cut is kept."""
    cut = trusted.cut
    return config.home() / "heads" / f"{trusted.info.fingerprint}-{cut.start}-{cut.stop}.safetensors"


def load_head(path: Path, trusted: Trusted) -> DraftHead:
    """Read a head for this model and cut.

    Raises:
        InputError: it is missing, or for another model or cut.
        WeightsError: it is no draft head, or damaged.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file; make a draft head with `cutlayer train-draft`")
    try:
        with safe_open(path, framework="pt") as file:
            card = _card(path, file)
            _check_for(path, card, trusted)
            head = DraftHead(trusted.parts, _vocabulary(path, file, card, trusted), card.rank)
            _fill(path, file, head)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error
    return head


def read_card(path: Path) -> Card:
    """What a file says of itself.

    Raises:
        WeightsError: it is no draft head.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return _card(path, file)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from error


def _card(path: Path, file: Any) -> Card:
    text = (file.metadata() or {}).get(_CARD)
    if text is None:
        raise WeightsError(
            f"{path} is no draft head: its metadata lacks {_CARD!r}; make one with `cutlayer train-draft`"
        )
    try:
        return msgspec.json.decode(text, type=Card)
    except (msgspec.MsgspecError, InputError) as error:
        raise WeightsError(f"{path} describes a draft head this version cannot read: {error}") from error


def _check_for(path: Path, card: Card, trusted: Trusted) -> None:
    if card.fingerprint != trusted.info.fingerprint:
        raise InputError(
            f"{path} is a draft head for the model with fingerprint {card.fingerprint}, this one's is "
            f"{trusted.info.fingerprint}; train one for it with `cutlayer train-draft`"
        )
    if card.cut != trusted.cut:
        raise InputError(f"{path} was trained at cut {card.cut}, this session's is {trusted.cut}; train one for it")
    size = trusted.parts.head.embedding().shape[1]
    if card.rank > size:
        raise WeightsError(f"{path} claims rank {card.rank} for a model of hidden size {size}")


def _vocabulary(path: Path, file: Any, card: Card, trusted: Trusted) -> torch.Tensor:
    known = len(trusted.parts.head.embedding())
    _check_tensor(path, file, _VOCABULARY, "I32", (card.outputs,))
    if card.outputs > known:
        raise WeightsError(f"{path} guesses among {card.outputs} tokens; the model has {known}")
    ids: torch.Tensor = file.get_tensor(_VOCABULARY)  # [R]
    if not 0 <= int(ids.min()) <= int(ids.max()) < known or len(set(ids.tolist())) < len(ids):
        raise WeightsError(f"{path}: the tokens of its output repeat or are outside the vocabulary of {known}")
    return ids


@torch.no_grad()
def _fill(path: Path, file: Any, head: DraftHead) -> None:
    wanted = head.trained()
    if (names := set(file.keys()) - {_VOCABULARY}) != set(wanted):
        odd = sorted(names ^ set(wanted))[0]
        raise WeightsError(f"{path}: tensor {odd!r} is {'missing' if odd in wanted else 'unknown'}")
    for name, weight in wanted.items():
        _check_tensor(path, file, name, "BF16", tuple(weight.shape))
        read = file.get_tensor(name)
        if not read.isfinite().all():
            raise WeightsError(f"{path}: tensor {name!r} holds NaN or infinity")
        weight.copy_(read)


def _check_tensor(path: Path, file: Any, name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Check a tensor's header, so that nothing larger than expected is read."""
    if name not in file.keys():  # noqa: SIM118 (no mapping)
        raise WeightsError(f"{path}: tensor {name!r} is missing")
    header = file.get_slice(name)
    found = header.get_dtype(), tuple(header.get_shape())
    if found != (dtype, shape):
        raise WeightsError(f"{path}: tensor {name!r} is {found[0]} {list(found[1])}, not {dtype} {list(shape)}")
