"""From a model directory to a running service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import torch

import cutlayer
from cutlayer.models.family import read_config
from cutlayer.models.locate import fingerprint
from cutlayer.models.parts import load_body
from cutlayer.server.engine import Engine
from cutlayer.server.service import Service
from cutlayer.server.sessions import Limits, SessionTable
from cutlayer.types import Cut, DtypeName
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from pathlib import Path

_OPENED_LISTED: Final = 1024
_OPENED_LISTED_BYTES: Final = 48_000


def build_service(
    directory: Path, model: str, cut: str, dtype: DtypeName, device: str = "cpu", limits: Limits | None = None
) -> Service:
    """Load the body of `cut` and stand ready to serve it.

    Raises:
        CutError: the cut does not fit the model.
        UnsupportedModelError: the model cannot be cut.
        WeightsError: the checkpoint is incomplete.
    """
    limits = limits or Limits()
    config = read_config(directory)
    span = Cut.parse(cut, config.num_hidden_layers)
    longest = getattr(config, "max_position_embeddings", None) or limits.positions
    limits = msgspec.structs.replace(limits, positions=min(limits.positions, longest, limits.cache_positions))
    body = load_body(directory, span, getattr(torch, dtype), device)
    info = frames.InfoReply(
        protocol=frames.PROTOCOL,
        version=cutlayer.__version__,
        model=model,
        fingerprint=fingerprint(directory),
        cut=span,
        dtype=dtype,
        device=device,
        hidden_size=config.hidden_size,
        max_positions=limits.positions,
        codecs=CODECS.names(),
        time=0.0,
        opened=_listed(body.opened),
        opened_count=len(body.opened),
    )
    engine = Engine(body, limits.cache_positions, limits.cache_positions_per_owner)
    return Service(engine, SessionTable(engine, config.hidden_size, limits), info)


def _listed(names: tuple[str, ...]) -> list[str]:
    """As many names as surely fit one header."""
    listed: list[str] = []
    room = _OPENED_LISTED_BYTES
    for name in names[:_OPENED_LISTED]:
        room -= len(name.encode()) + 5  # MessagePack's longest string prefix
        if room < 0:
            break
        listed.append(name)
    return listed
