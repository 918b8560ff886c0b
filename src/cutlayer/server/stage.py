"""One stage of a replica: consecutive layers, the caches of the sessions on them, and an engine, in a process of its own.

Imports nothing heavy at the top: the process must be able to forbid the text libraries before transformers looks for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch

from cutlayer.errors import CutlayerError, SessionLostError

if TYPE_CHECKING:
    import numpy

    from cutlayer.models.weights import WeightsName
    from cutlayer.tree import Placement
    from cutlayer.types import Cut, DtypeName

_CARRIER: Final = {"float32": torch.float32, "bfloat16": torch.int16, "float16": torch.int16}
"""Number types that NumPy has, of the same width."""


class StageOptions(NamedTuple):
    """What every stage is told."""

    model: str
    fingerprint: str
    dtype: DtypeName
    device: str
    weights: WeightsName
    cache_positions: int
    per_owner: int


class Stage:
    """Consecutive layers in a process of their own.

    Args:
        options: model and limits.
        cut: its layers.

    Raises:
        CutlayerError: the model in this machine's cache is not the one that is served.
    """

    def __init__(self, options: StageOptions, cut: Cut) -> None:
        from cutlayer.server.isolation import forbid_text_libraries

        forbid_text_libraries()

        from cutlayer.models.locate import fingerprint, locate
        from cutlayer.models.parts import load_body
        from cutlayer.models.weights import keep_weights
        from cutlayer.server.engine import Engine

        directory = locate(options.model)
        if fingerprint(directory) != options.fingerprint:
            raise CutlayerError(f"{options.model} on this machine is not the model that is served; pull the same one")
        body = load_body(directory, cut, getattr(torch, options.dtype), options.device)
        keep_weights(body, options.weights)
        self._opened = list(body.opened)
        self._dtype: DtypeName = options.dtype
        self._engine = Engine(body, options.cache_positions, options.per_owner)
        self._caches: dict[int, Any] = {}

    async def opened(self) -> list[str]:
        """Checkpoint tensors this stage opened."""
        return self._opened

    async def run(
        self, session: int, owner: str, place: Placement, packet: tuple[numpy.ndarray[Any, Any], int]
    ) -> tuple[numpy.ndarray[Any, Any], int]:
        """Hidden states [T, D] and the microseconds spent before → the same after this stage.

        Raises:
            SessionLostError: the session is not here.
        """
        if session not in self._caches:
            if place.base:
                raise SessionLostError("this stage does not hold the session")
            self._caches[session] = self._engine.new_cache(owner, 0)
        hidden, spent = packet
        output, microseconds = await self._engine.run(unpacked(hidden, self._dtype), place, self._caches[session])
        return packed(output), spent + microseconds

    async def release(self, session: int) -> None:
        """Forget a session."""
        cache = self._caches.pop(session, None)
        if cache is not None:
            self._engine.release(cache)


def packed(hidden: torch.Tensor) -> numpy.ndarray[Any, Any]:
    """A tensor as an array of the same bytes: NumPy has no bfloat16."""
    hidden = hidden.detach().cpu().contiguous()
    name = str(hidden.dtype).removeprefix("torch.")
    return hidden.view(_CARRIER[name]).numpy()


def unpacked(array: numpy.ndarray[Any, Any], dtype: DtypeName) -> torch.Tensor:
    """The tensor `packed` made the array of."""
    # Copied: Ray's arrays are read-only views of shared memory.
    return torch.from_numpy(array.copy()).view(getattr(torch, dtype))
