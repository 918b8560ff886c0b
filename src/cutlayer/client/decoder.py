"""The decode loop's one step: token ids → head → defence → server → tail → logits.

    decoder = Decoder(parts, remote, defence)
    logits = decoder.extend(prompt_ids)          # prefill, in overlapping chunks
    logits = decoder.extend([next_id])           # one token, one round trip
    decoder.rollback(position)

The three caches (head's, server's, tail's) always cover the same positions; `ids` are the tokens at them.

Notation: T tokens of a chunk, D hidden size, V vocabulary.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import torch

from cutlayer.defences.positions import History
from cutlayer.errors import CancelledError, InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        turn: held during a forward pass, where decoders share `parts`.
    """

    def __init__(
        self, parts: ClientParts, remote: RemoteBody, defence: Defence, turn: threading.Lock | None = None
    ) -> None:
        self.ids: list[int] = []
        self.released = 0
        """Positions that have left so far, those that left again after a rollback included."""
        self._turn = turn or threading.Lock()
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

    def extend(
        self,
        ids: Sequence[int],
        *,
        every: Callable[[int, torch.Tensor], None] | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> torch.Tensor:
        """Append tokens and return the logits [V] after the last one, float32 on the CPU.

        Args:
            ids: the tokens.
            every: called chunk by chunk with the position of its first token and the logits [T, V] after each of its tokens,
                float32. A chunk has at most `PREFILL_CHUNK` tokens, so that never more than that many rows are held.
            cancelled: asked before each chunk is sent. Those under way are finished and kept, and the session stays usable.

        Raises:
            InputError: no tokens, one outside the vocabulary, or more than the session has room for.
            ConnectionLostError: the server did not come back in time. The decoder stays where it was.
            CancelledError: `cancelled` said so.
        """
        self._check(ids)
        started = time.perf_counter()
        base = len(self.ids)
        chunk = min(PREFILL_CHUNK, self._remote.max_step_positions)
        chunks = [ids[i : i + chunk] for i in range(0, len(ids), chunk)]
        waiting: deque[int] = deque()
        client = server = 0.0
        logits = torch.empty(0)
        sent = 0
        try:
            with torch.inference_mode(), self._remote.heeding(cancelled):
                while sent < len(chunks) or waiting:
                    if sent < len(chunks) and cancelled():
                        del chunks[sent:]
                        continue
                    if sent < len(chunks):
                        begun = time.perf_counter()
                        hidden = self._outgoing(chunks[sent])  # [T, D]
                        client += time.perf_counter() - begun
                        self._remote.send(self._head_cache.position - len(hidden), hidden)
                        self.released += len(hidden)
                        waiting.append(len(hidden))
                        sent += 1
                    if len(waiting) > _IN_FLIGHT or sent == len(chunks):
                        waiting.popleft()
                        returned = self._remote.receive()
                        begun = time.perf_counter()
                        rows = self._logits(returned.hidden, all_rows=every is not None)  # [T, V] or [1, V]
                        client += time.perf_counter() - begun
                        server += returned.compute_us * 1e-6
                        logits = rows[-1]
                        if every is not None:
                            every(self._tail_cache.position - len(rows), rows)
        except BaseException:
            self.rollback(base)
            self._remote.abandon()
            raise
        self.ids += [token for part in chunks for token in part]
        self.last_timing = StepTiming(time.perf_counter() - started, client, server)
        if len(self.ids) < base + len(ids):
            raise CancelledError("stopped while the prompt was being sent")
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
        with self._turn:
            hidden = self._parts.head(tokens, self._head_cache)[0]  # [T, D]
        return self._defence.release(hidden, self._history.extend(base, ids))

    def _logits(self, hidden: torch.Tensor, all_rows: bool) -> torch.Tensor:
        """Logits after the last position [1, V], or after every one [T, V]."""
        inputs = hidden.to(self._device, self._dtype).unsqueeze(0)  # [1, T, D]
        with self._turn:
            logits: torch.Tensor = self._parts.tail(inputs, self._tail_cache, keep=0 if all_rows else 1)[0]
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
