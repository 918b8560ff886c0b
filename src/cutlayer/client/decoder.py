"""The decode loop's one step: token ids → head → defence → server → tail → logits.

    decoder = Decoder(parts, remote, defence)
    logits = decoder.extend(prompt_ids)          # prefill, in overlapping chunks
    logits = decoder.extend([next_id])           # one token, one round trip
    decoder.rollback(position)

The three caches (head's, server's, tail's) always cover the same positions; `ids` are the tokens at them.

Notation: T tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.defences.positions import History
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.remote import RemoteBody
    from cutlayer.defences.defence import Defence
    from cutlayer.models.parts import ClientParts

PREFILL_CHUNK: Final = 128
"""Positions per prefill frame: long enough to use the matrix units, short enough to overlap with the network."""
_IN_FLIGHT: Final = 4
"""Prefill chunks sent ahead of the one being awaited."""


class StepTiming(NamedTuple):
    """Where the time of one `extend` went, in seconds."""

    total: float
    client: float
    """In head, defence and tail."""
    server: float
    """In the body, as the server reports it."""


class Decoder:
    """One conversation's caches and its session.

    Args:
        parts: head and tail.
        remote: open session of the same cut.
        defence: applied to every hidden state before it leaves.
    """

    def __init__(self, parts: ClientParts, remote: RemoteBody, defence: Defence) -> None:
        self.ids: list[int] = []
        self.last_timing = StepTiming(0.0, 0.0, 0.0)
        self._parts = parts
        self._remote = remote
        self._defence = defence
        self._history = History()
        self._head_cache = parts.head.new_cache()
        self._tail_cache = parts.tail.new_cache()
        self._device = parts.head.embedding().device
        self._vocabulary = parts.head.embedding().shape[0]
        self._dtype = parts.head.embedding().dtype

    @property
    def room(self) -> int:
        """Positions the session can still take."""
        return self._remote.max_positions - len(self.ids)

    def extend(self, ids: Sequence[int]) -> torch.Tensor:
        """Append tokens and return the logits [V] after the last one, float32 on the CPU.

        Raises:
            InputError: no tokens, one outside the vocabulary, or more than the session has room for.
            ConnectionLostError: the server did not come back in time. The decoder stays where it was.
        """
        self._check(ids)
        started = time.perf_counter()
        base = len(self.ids)
        chunk = min(PREFILL_CHUNK, self._remote.max_step_positions)
        chunks = [ids[i : i + chunk] for i in range(0, len(ids), chunk)]
        waiting: deque[int] = deque()
        client = server = 0.0
        logits = torch.empty(0)
        try:
            with torch.inference_mode():
                for i in range(len(chunks) + _IN_FLIGHT):
                    if i < len(chunks):
                        begun = time.perf_counter()
                        hidden = self._outgoing(chunks[i])  # [T, D]
                        client += time.perf_counter() - begun
                        self._remote.send(self._head_cache.position - len(hidden), hidden)
                        waiting.append(len(hidden))
                    if waiting and (len(waiting) > _IN_FLIGHT or i >= len(chunks) - 1):
                        waiting.popleft()
                        returned = self._remote.receive()
                        begun = time.perf_counter()
                        logits = self._logits(returned.hidden)
                        client += time.perf_counter() - begun
                        server += returned.compute_us * 1e-6
        except BaseException:
            self.rollback(base)
            self._remote.abandon()
            raise
        self.ids += ids
        self.last_timing = StepTiming(time.perf_counter() - started, client, server)
        return logits

    def rollback(self, position: int) -> None:
        """Forget the tokens from `position` on. The server follows with the next step."""
        del self.ids[position:]
        for cache in (self._head_cache, self._tail_cache):
            cache.rollback(min(position, cache.position))

    def reuse(self, ids: Sequence[int]) -> Sequence[int]:
        """Roll back to the longest common prefix with `ids` and return the ids still to send, at least one."""
        common = 0
        for held, wanted in zip(self.ids, ids[:-1], strict=False):
            if held != wanted:
                break
            common += 1
        self.rollback(common)
        return ids[common:]

    def _outgoing(self, ids: Sequence[int]) -> torch.Tensor:
        base = self._head_cache.position
        tokens = torch.tensor([ids], device=self._device)  # [1, T]
        hidden = self._parts.head(tokens, self._head_cache)[0]  # [T, D]
        return self._defence.release(hidden, self._history.extend(base, ids))

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        inputs = hidden.to(self._device, self._dtype).unsqueeze(0)  # [1, T, D]
        logits: torch.Tensor = self._parts.tail(inputs, self._tail_cache, keep=1)[0, -1]  # [V]
        return logits.float().cpu()

    def _check(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InputError("nothing to decode: give at least one token id")
        wrong = next((i for i in ids if not 0 <= i < self._vocabulary), None)
        if wrong is not None:
            raise InputError(f"token id {wrong} is outside the vocabulary of {self._vocabulary}")
        if len(ids) > self.room:
            raise InputError(
                f"{len(ids)} more tokens do not fit: the session holds {len(self.ids)} of "
                f"{self._remote.max_positions}; shorten the prompt or raise the server's --max-positions"
            )
