"""Replicas of the body as Ray actors: one actor per stage, each with the layers it runs and their caches.

A stage is the engine of a single server around fewer layers, so it batches the sessions it holds. Hidden states go from stage to
stage through Ray's object store and come back to the process that speaks with the clients.

Ray moves objects between its processes by pickle and trusts everybody who reaches its ports: a cluster belongs on a network that
only its own machines can reach. What clients send is decoded and checked before Ray sees it, and reaches it as arrays of numbers.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cutlayer.errors import InputError, SessionLostError
from cutlayer.server.engine import Computed
from cutlayer.server.stage import Stage, StageOptions, packed, unpacked
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cutlayer.tree import Placement
    from cutlayer.types import DtypeName


class Resources(NamedTuple):
    """What Ray sets aside for a stage."""

    cpus: float = 1.0
    gpus: float = 0.0


class RayReplica:
    """One body in stages.

    Args:
        stages: actor handles, first layers first.
        dtype: of hidden states.
    """

    def __init__(self, stages: list[Any], dtype: DtypeName) -> None:
        self._stages = stages
        self._dtype = dtype

    async def opened(self) -> list[str]:
        """See `Replica`."""
        with _losses():
            return [name for stage in self._stages for name in await stage.opened.remote()]

    async def run(self, session: int, owner: str, hidden: torch.Tensor, place: Placement) -> Computed:
        """See `Replica`."""
        packet: Any = (packed(hidden.to(getattr(torch, self._dtype))), 0)
        with _losses():
            for stage in self._stages:  # each call takes the reference of the one before: states skip this process
                packet = stage.run.remote(session, owner, place, packet)
            output, microseconds = await packet
        return Computed(unpacked(output, self._dtype), microseconds)

    def release(self, session: int) -> None:
        """See `Replica`."""
        for stage in self._stages:
            stage.release.remote(session)

    def stop(self) -> None:
        """See `Replica`."""
        import ray

        for stage in self._stages:
            with contextlib.suppress(Exception):  # it may be dead, or Ray gone
                ray.kill(stage)


def connect_cluster(address: str) -> None:
    """Join a Ray cluster: ``HOST:PORT``, ``auto``, or ``local`` to start one on this machine.

    Raises:
        InputError: Ray is not installed, or nobody answers there.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise InputError(f"--ray needs {error.name}; pip install 'cutlayer[ray]'") from error
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address == "local" else None)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(f"no Ray cluster at {address}: {error}") from error


def disconnect_cluster() -> None:
    """Leave it."""
    import ray

    ray.shutdown()


def replica_starter(options: StageOptions, cut: Cut, stages: int, resources: Resources) -> Callable[[], RayReplica]:
    """A function that begins a new replica.

    Raises:
        InputError: more stages than layers.
    """
    import ray

    spans = stage_cuts(cut, stages)
    actor = ray.remote(num_cpus=resources.cpus, num_gpus=resources.gpus, max_restarts=0)(Stage)
    return lambda: RayReplica([actor.remote(options, span) for span in spans], options.dtype)


def stage_cuts(cut: Cut, stages: int) -> list[Cut]:
    """The layers of each of `stages` stages, as evenly as they divide.

    >>> [str(span) for span in stage_cuts(Cut(2, 28, 30), 3)]
    ['2:11', '11:20', '20:28']

    Raises:
        InputError: more stages than layers.
    """
    if not 1 <= stages <= cut.body_layers:
        raise InputError(f"{cut.body_layers} layers cannot run in {stages} stages")
    size, longer = divmod(cut.body_layers, stages)
    starts = [cut.start + i * size + min(i, longer) for i in range(stages + 1)]
    return [Cut(start, stop, cut.layers) for start, stop in itertools.pairwise(starts)]


@contextlib.contextmanager
def _losses() -> Iterator[None]:
    """Ray's many ways to say that an actor is gone, as one error."""
    from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

    try:
        yield
    except (RayActorError, ObjectLostError) as error:
        raise SessionLostError(f"a stage's process has died: {_last_line(error)}") from error
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (RayActorError, ObjectLostError)):  # the stage before it died
            raise SessionLostError("a stage's process has died") from error
        if isinstance(cause, Exception):
            raise cause from None
        raise


def _last_line(error: Exception) -> str:
    """Ray tells the whole story; its end is the reason."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
