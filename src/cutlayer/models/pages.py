"""Keys and values of many sessions in one pool of fixed-size pages.

A session's positions lie in runs of consecutive pages. A run can be read without copying, so the pool hands out the page
after a session's last one whenever it is free, and starts new sessions where the most room follows.

Pages are given back whole, unread: what an earlier session left in one is overwritten before the next session's length
reaches it, and nothing beyond that length is ever read.

Notation: T positions written, S positions held, H key/value heads, d head size.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import torch

from cutlayer.errors import CacheFullError, ProtocolError
from cutlayer.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE: Final = 32
"""Positions per page: small enough that short chats waste little, large enough that tables stay short."""


class PagePool:
    """All pages of one part, and who holds them.

    Memory is reserved at the first write and, on most systems, taken only as pages are first used.

    Args:
        layers: of the part.
        positions: how many the pool holds, rounded up to whole pages.
        per_owner: positions one owner may hold; 0 sets no limit.
    """

    def __init__(self, layers: int, positions: int, per_owner: int = 0) -> None:
        self.pages = -(-positions // PAGE)
        self._per_owner = -(-per_owner // PAGE)
        self._taken = bytearray(self.pages)
        self._held: dict[str, int] = {}
        self.used = 0
        """Pages in use; kept beside `_held`, which other threads must not sum while it changes."""
        self._layers: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * layers
        # Sessions are opened by the event loop, and grow in the thread that runs the model.
        self._lock = threading.Lock()

    def held(self, owner: str) -> int:
        """Pages of one owner."""
        return self._held.get(owner, 0)

    def nbytes(self) -> int:
        """Bytes of the pages in use."""
        per_page = sum(
            PAGE * tensor[0].numel() * tensor.element_size()
            for pair in self._layers
            if pair is not None
            for tensor in pair
        )
        return self.used * per_page

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys [T, H, d] and values [T, H, d] at `slots` [T]."""
        held = self._layers[layer]
        if held is None:
            size = self.pages * PAGE
            held = keys.new_empty(size, *keys.shape[1:]), values.new_empty(size, *values.shape[1:])
            self._layers[layer] = held
        held[0].index_copy_(0, slots, keys)
        held[1].index_copy_(0, slots, values)

    @torch.inference_mode()  # as the forward that made the tensors
    def move(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Copy what the slots `sources` [P] hold in every layer to the slots `targets` [P]."""
        for held in filter(None, self._layers):
            for tensor in held:
                tensor[targets] = tensor[sources]

    def read(self, layer: int, runs: Sequence[range]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [S, H, d] of slots in `runs`, which were written before; a view if there is one run."""
        held = self._layers[layer]
        if held is None:
            raise ProtocolError(f"nothing was written to layer {layer}")
        keys, values = held
        if len(runs) == 1:
            [run] = runs
            return keys[run.start : run.stop], values[run.start : run.stop]
        return (
            torch.cat([keys[run.start : run.stop] for run in runs]),
            torch.cat([values[run.start : run.stop] for run in runs]),
        )

    def take(self, owner: str, count: int, after: int | None) -> list[range]:
        """`count` pages for `owner`, in as few runs as possible, the first right after page `after` if that is free.

        Raises:
            CacheFullError: there are not so many, or the owner has had its share; nothing is taken.
        """
        with self._lock:
            mine = self.held(owner)
            if 0 < self._per_owner < mine + count:
                raise CacheFullError(
                    f"your sessions hold {mine * PAGE} positions and may hold {self._per_owner * PAGE}; close one",
                    own=True,
                )
            if count > self.pages - self.used:
                raise CacheFullError(f"all {self.pages * PAGE} positions of the cache are in use; try again later")
            runs: list[range] = []
            while count:
                run = self._run_at(after + 1, count) if after is not None else self._roomiest(count)
                after = None
                if run:
                    self._taken[run.start : run.stop] = b"\1" * len(run)
                    self._count(owner, len(run))
                    count -= len(run)
                    runs.append(run)
            return runs

    def give_back(self, owner: str, runs: Sequence[range]) -> None:
        """Free pages that `owner` took."""
        with self._lock:
            for run in runs:
                self._taken[run.start : run.stop] = bytes(len(run))
                self._count(owner, -len(run))

    def _count(self, owner: str, pages: int) -> None:
        self.used += pages
        self._held[owner] = self.held(owner) + pages
        if not self._held[owner]:
            del self._held[owner]

    def _run_at(self, start: int, count: int) -> range:
        stop = min(start + count, self.pages)
        taken = self._taken.find(1, start, stop)
        return range(start, stop if taken < 0 else taken)

    def _roomiest(self, count: int) -> range:
        """Up to `count` pages of the longest free run, from its middle if somebody may want to grow into its beginning."""
        longest = len(max(bytes(self._taken).split(b"\1"), key=len))
        first = self._taken.find(bytes(longest))
        if first > 0:
            first += min(longest // 2, max(longest - count, 0))
        return self._run_at(first, count)


class PageTable:
    """One session's positions in a pool.

    Args:
        pool: where they lie.
        owner: whose quota they count against.
        reserve: positions set aside at once, so that the session can grow to so many whatever others do.

    Raises:
        CacheFullError: there is no room for `reserve`.
    """

    def __init__(self, pool: PagePool, owner: str, reserve: int = 0) -> None:
        self.pool = pool
        self.owner = owner
        self.tree = Tree()
        self._reserved = -(-reserve // PAGE)
        self._runs: list[range] = []
        self._hold(self._reserved)

    @property
    def position(self) -> int:
        """Slots held."""
        return len(self.tree)

    def grow(self, positions: int) -> None:
        """Have room for `positions` positions in all.

        Raises:
            CacheFullError: there is none; nothing changes.
        """
        self._hold(-(-positions // PAGE))

    def rollback(self, position: int) -> None:
        """Forget everything from `position` on; pages that become empty go back to the pool, reserved ones excepted.

        Raises:
            ProtocolError: `position` lies beyond what is held.
        """
        self.keep(position)

    def keep(self, anchor: int, path: Sequence[int] = (), room: int = 0) -> None:
        """Of the slots from `anchor` on keep those of a path, see `Tree.keep`, and forget the others.

        Args:
            anchor: slots that stay where they are.
            path: distances from `anchor` to the slots kept.
            room: positions to have room for afterwards, as after `grow`.

        Raises:
            ProtocolError: it is none; nothing changes.
            CacheFullError: there is no such room; nothing changes, so the path can still be kept later.
        """
        self.tree.check_path(anchor, path)
        self.grow(room)
        if list(path) != list(range(len(path))):
            slots = torch.tensor(self.slots(anchor, self.position))
            self.pool.move(slots[list(path)], slots[: len(path)])
        self.tree.keep(anchor, path)
        self._shrink(max(-(-max(self.position, room) // PAGE), self._reserved))

    def free(self) -> None:
        """Give all pages back."""
        self._reserved = 0
        self.rollback(0)

    def slots(self, start: int, stop: int) -> list[int]:
        """Slots of the positions from `start` to before `stop`, which fit the pages held."""
        return [slot for run in self.runs(stop, start) for slot in run]

    def runs(self, stop: int, start: int = 0) -> list[range]:
        """The same as runs of consecutive slots."""
        found = []
        for run in self._runs:
            length = len(run) * PAGE
            if start < length and stop > 0:
                first = run.start * PAGE
                found.append(range(first + max(start, 0), first + min(stop, length)))
            start, stop = start - length, stop - length
        return found

    def _pages(self) -> int:
        return sum(map(len, self._runs))

    def _hold(self, pages: int) -> None:
        missing = pages - self._pages()
        if missing <= 0:
            return
        last = self._runs[-1].stop - 1 if self._runs else None
        for run in self.pool.take(self.owner, missing, last):
            if self._runs and self._runs[-1].stop == run.start:
                self._runs[-1] = range(self._runs[-1].start, run.stop)
            else:
                self._runs.append(run)

    def _shrink(self, pages: int) -> None:
        surplus = self._pages() - pages
        dropped = []
        while surplus > 0:
            run = self._runs.pop()
            cut = max(run.stop - surplus, run.start)
            dropped.append(range(cut, run.stop))
            surplus -= run.stop - cut
            if cut > run.start:
                self._runs.append(range(run.start, cut))
        if dropped:
            self.pool.give_back(self.owner, dropped)
