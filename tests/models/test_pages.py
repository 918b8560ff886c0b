"""Pages: nobody ever sees another session's positions, and nothing is lost or held twice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from cutlayer.errors import CacheFullError, ProtocolError
from cutlayer.models.pages import PAGE, PagePool, PageTable
from cutlayer.tree import FURTHEST

PAGES = 12


class Sessions(RuleBasedStateMachine):
    """Sessions that grow, branch, keep a path, roll back and end in any order, beside a plain list of what each wrote."""

    tables = Bundle("tables")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(1, PAGES * PAGE, per_owner=8 * PAGE)
        self.written: dict[PageTable, list[float]] = {}
        self.next = 0.0

    @rule(target=tables, owner=st.sampled_from("ab"), reserve=st.integers(0, 3 * PAGE))
    def open(self, owner: str, reserve: int) -> PageTable:
        try:
            table = PageTable(self.pool, owner, reserve)
        except CacheFullError:
            table = PageTable(self.pool, owner)
        self.written[table] = []
        return table

    @rule(table=tables, count=st.integers(1, 5 * PAGE // 2), data=st.data())
    def write(self, table: PageTable, count: int, data: st.DataObject) -> None:
        if table not in self.written:
            return
        end = table.position + count
        used, held = self.pool.used, self.pool.held(table.owner)
        runs = table.runs(PAGES * PAGE)
        try:
            table.grow(end)
        except CacheFullError:
            assert (self.pool.used, self.pool.held(table.owner), table.runs(PAGES * PAGE)) == (used, held, runs)
            return
        values = [self.next + i for i in range(count)]
        self.next += count
        rows = torch.tensor(values).view(-1, 1, 1)
        self.pool.write(0, torch.tensor(table.slots(table.position, end)), rows, -rows)
        furthest = min(len(self.written[table]) + 1, FURTHEST)
        backs = data.draw(st.sampled_from([[], [furthest, *[1] * (count - 1)], [1, *[2] * (count - 1)]]))
        table.tree.extend(count, backs)
        self.written[table] += values

    @rule(table=tables, share=st.floats(0, 1), above=st.integers(0, 3))
    def keep_a_path(self, table: PageTable, share: float, above: int) -> None:
        """The one to any slot, from where it leaves the trunk, or a little before."""
        held = self.written.get(table)
        if not held:
            return
        trunk, branch = table.tree.path(int(share * (len(held) - 1)))
        anchor = max(0, trunk - above)
        slots = [*range(anchor, trunk), *branch]
        if slots and slots[-1] - anchor > FURTHEST:
            return
        table.keep(anchor, [slot - anchor for slot in slots])
        held[anchor:] = [held[slot] for slot in slots]
        assert table.tree.trunk == table.position == len(held)

    @rule(table=tables, data=st.data())
    def keep_no_path(self, table: PageTable, data: st.DataObject) -> None:
        """Slots that do not follow one another, or are not held: refused, and everything stays."""
        if table not in self.written:
            return
        anchor = data.draw(st.integers(0, table.position))
        wrong = data.draw(st.sampled_from([[table.position - anchor], [0, 0], [-1], [1, 0]]))
        with pytest.raises(ProtocolError):
            table.keep(anchor, wrong)

    @rule(table=tables, share=st.floats(0, 1))
    def roll_back(self, table: PageTable, share: float) -> None:
        if table in self.written:
            position = int(share * table.position)
            table.rollback(position)
            del self.written[table][position:]

    @rule(table=tables)
    def end(self, table: PageTable) -> None:
        if table in self.written:
            table.free()
            del self.written[table]

    @invariant()
    def everybody_reads_what_they_wrote(self) -> None:
        for table, values in self.written.items():
            if values:
                keys, negated = self.pool.read(0, table.runs(table.position))
                assert keys.flatten().tolist() == values
                assert torch.equal(negated, -keys)

    @invariant()
    def pages_are_counted(self) -> None:
        assert self.pool.used == self.pool.held("a") + self.pool.held("b") <= PAGES
        assert self.pool.held("a") <= 8
        if not self.written:
            assert self.pool.used == 0


Sessions.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestSessions = Sessions.TestCase


@given(first=st.integers(1, 200), reserve=st.integers(0, 200))
def test_a_lone_session_lies_in_one_run(first: int, reserve: int) -> None:
    pool = PagePool(1, 64 * PAGE)
    table = PageTable(pool, "a", reserve)
    for end in range(1, first, 7):
        table.grow(end)
    assert len(table.runs(first)) <= 1


def test_two_growing_sessions_stay_out_of_each_others_way() -> None:
    pool = PagePool(1, 64 * PAGE)
    one, two = PageTable(pool, "a"), PageTable(pool, "b")
    for end in range(1, 16 * PAGE, PAGE // 2):
        one.grow(end)
        two.grow(end)
    assert len(one.runs(16 * PAGE)) == len(two.runs(16 * PAGE)) == 1


def test_a_reservation_is_kept_through_rollback_and_against_others() -> None:
    pool = PagePool(1, 4 * PAGE)
    promised = PageTable(pool, "a", 3 * PAGE)
    promised.grow(3 * PAGE)
    promised.tree.extend(3 * PAGE)
    promised.rollback(0)
    other = PageTable(pool, "b")
    other.grow(PAGE)
    with pytest.raises(CacheFullError, match="try again later"):
        other.grow(2 * PAGE)
    promised.grow(3 * PAGE)


def test_a_path_is_kept_with_room_for_more_or_not_at_all() -> None:
    pool = PagePool(1, 3 * PAGE)
    table, other = PageTable(pool, "a"), PageTable(pool, "b")
    table.grow(PAGE)
    table.tree.extend(PAGE, [1] * (PAGE - 2) + [2, 1])
    rows = torch.arange(PAGE, dtype=torch.float32).view(-1, 1, 1)
    pool.write(0, torch.tensor(table.slots(0, PAGE)), rows, -rows)
    other.grow(PAGE)
    path = range(1, 3)
    with pytest.raises(CacheFullError, match="try again later"):
        table.keep(PAGE - 3, path, room=2 * PAGE + 1)
    assert (table.position, pool.held("a")) == (PAGE, 1)
    other.free()
    table.keep(PAGE - 3, path, room=2 * PAGE + 1)
    assert (table.position, pool.held("a")) == (PAGE - 1, 3)
    keys, _ = pool.read(0, table.runs(table.position))
    assert keys.flatten().tolist() == [*range(PAGE - 3), PAGE - 2, PAGE - 1]
    table.keep(PAGE - 1)
    assert pool.held("a") == 1


def test_a_quota_names_itself() -> None:
    pool = PagePool(1, 8 * PAGE, per_owner=2 * PAGE)
    table = PageTable(pool, "a")
    table.grow(2 * PAGE)
    with pytest.raises(CacheFullError, match="your sessions hold 64 positions") as refused:
        PageTable(pool, "a").grow(1)
    assert refused.value.own
    PageTable(pool, "b").grow(1)


@pytest.mark.parametrize("position", [-1, 1])
def test_rolling_back_beyond_what_is_held_is_refused(position: int) -> None:
    with pytest.raises(ProtocolError, match="cannot roll back"):
        PageTable(PagePool(1, PAGE), "a").rollback(position)
