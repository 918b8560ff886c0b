"""From a model directory to a running service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import structlog
import torch

import cutlayer
from cutlayer.models.family import read_config
from cutlayer.models.locate import fingerprint
from cutlayer.models.parts import load_body
from cutlayer.models.weights import keep_weights, stored_bytes
from cutlayer.server.engine import Engine
from cutlayer.server.replicas import ReplicaEngine
from cutlayer.server.service import Service
from cutlayer.server.sessions import Limits, SessionTable
from cutlayer.types import Cut, DtypeName
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from pathlib import Path

    from cutlayer.models.weights import WeightsName
    from cutlayer.server.engine import Runner
    from cutlayer.server.ray_stages import Resources
    from cutlayer.server.replicas import Scale

log: Final = structlog.get_logger("cutlayer.server")

_OPENED_LISTED: Final = 1024
_OPENED_LISTED_BYTES: Final = 48_000


class Fleet(NamedTuple):
    """A body on a Ray cluster."""

    address: str
    """``HOST:PORT``, ``auto`` or ``local``."""
    stages: int
    """Machines, or devices, that one replica's layers are spread over."""
    scale: Scale
    resources: Resources


def build_service(
    directory: Path,
    model: str,
    cut: str,
    dtype: DtypeName,
    device: str = "cpu",
    limits: Limits | None = None,
    weights: WeightsName = "dtype",
) -> Service:
    """Load the body of `cut` and stand ready to serve it.

    Raises:
        CutError: the cut does not fit the model.
        InputError: the library for such weights is not installed.
        UnsupportedModelError: the model cannot be cut, or its weights not be kept so.
        WeightsError: the checkpoint is incomplete.
    """
    span, limits = _bounds(directory, cut, limits)
    body = load_body(directory, span, getattr(torch, dtype), device)
    keep_weights(body, weights)
    log.info("loaded", model=model, cut=str(span), dtype=dtype, weights=weights, weight_bytes=stored_bytes(body))
    opened = body.opened
    engine = Engine(body, limits.cache_positions, limits.cache_positions_per_owner)
    return _service(engine, directory, model, span, dtype, device, limits, opened)


def build_fleet_service(
    directory: Path,
    source: str,
    model: str,
    cut: str,
    dtype: DtypeName,
    device: str,
    limits: Limits,
    fleet: Fleet,
    weights: WeightsName = "dtype",
) -> Service:
    """Start the first replica on a Ray cluster and stand ready to serve it. This process loads no weights.

    Args:
        directory: the model on this machine.
        source: by which every machine of the cluster finds it: a pulled name or a path.
        model: the name clients are told.
        cut: A:B.
        dtype: of the computation.
        device: of every stage.
        limits: bounds.
        fleet: where and how.
        weights: how every stage keeps its weights.

    Raises:
        InputError: no cluster at that address, or more stages than layers.
        SessionLostError: the replica did not start.
    """
    from cutlayer.server.ray_stages import connect_cluster, disconnect_cluster, replica_starter
    from cutlayer.server.stage import StageOptions

    span, limits = _bounds(directory, cut, limits)
    connect_cluster(fleet.address)
    options = StageOptions(
        source, fingerprint(directory), dtype, device, weights, limits.cache_positions, limits.cache_positions_per_owner
    )
    start = replica_starter(options, span, fleet.stages, fleet.resources)
    engine = ReplicaEngine(start, fleet.scale, disconnect_cluster)
    opened = tuple(asyncio.run(engine.ready()))
    return _service(engine, directory, model, span, dtype, device, limits, opened)


def _bounds(directory: Path, cut: str, limits: Limits | None) -> tuple[Cut, Limits]:
    """The layers served, and limits no wider than the model's."""
    limits = limits or Limits()
    config = read_config(directory)
    longest = getattr(config, "max_position_embeddings", None) or limits.positions
    positions = min(limits.positions, longest, limits.cache_positions)
    return Cut.parse(cut, config.num_hidden_layers), msgspec.structs.replace(limits, positions=positions)


def _service(
    engine: Runner, directory: Path, model: str, cut: Cut, dtype: DtypeName, device: str, limits: Limits, opened: tuple[str, ...]
) -> Service:  # fmt: skip
    hidden_size = read_config(directory).hidden_size
    info = frames.InfoReply(
        protocol=frames.PROTOCOL,
        version=cutlayer.__version__,
        model=model,
        fingerprint=fingerprint(directory),
        cut=cut,
        dtype=dtype,
        device=device,
        hidden_size=hidden_size,
        max_positions=limits.positions,
        codecs=CODECS.names(),
        time=0.0,
        opened=_listed(opened),
        opened_count=len(opened),
    )
    return Service(engine, SessionTable(engine, hidden_size, limits), info)


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
