"""The shipped table: built from what the model said, small, and refused if it is not what it claims."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.client.speculation import table as module
from cutlayer.client.speculation.contexts import LongestKnown
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.client.speculation.table import (
    LONGEST,
    Entry,
    build,
    entries_of,
    find_table,
    load_table,
    save_table,
    shared_table,
)
from cutlayer.client.speculation.tensor_file import Purpose, pack
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

V = 23
FINGERPRINT = "f" * 32
CONTEXTS = st.lists(st.integers(0, V - 1), min_size=1, max_size=5)


def entries() -> list[Entry]:
    return [
        Entry([1, 2, 3], [4, 5], [0.8, 0.1]),
        Entry([9, 2, 3], [5, 6], [0.6, 0.2]),
        Entry([3], [4], [1.0]),
        Entry([8, 9], [1], [0.5]),
    ]


def test_what_was_said_is_averaged() -> None:
    table = build(entries(), V)
    assert table.get((2, 3)) == pytest.approx({4: 0.4, 5: 0.35, 6: 0.1}, abs=0.005)
    assert table.get((3,)) == pytest.approx({4: 0.6, 5: 0.233, 6: 0.067}, abs=0.005)
    assert table.get((7,)) == {}
    assert table.get((7, 3)) == {}


@given(st.lists(CONTEXTS, max_size=30), st.integers(0, V - 1))
def test_any_table_comes_back(contexts: list[list[int]], token: int) -> None:
    table = build([Entry(context, [token], [0.5]) for context in contexts], V)
    for context in contexts:
        for length in range(1, min(LONGEST, len(context)) + 1):
            assert table.get(tuple(context[-length:])) == {token: 127 / 255}


def test_round_trip(tmp_path: Path) -> None:
    table = build(entries(), V)
    file = tmp_path / "table.safetensors"
    save_table(table, FINGERPRINT, file)
    again = load_table(file, FINGERPRINT, V)
    for context in ((3,), (2, 3), (5, 5)):
        assert again.get(context) == table.get(context)


def test_the_most_frequent_contexts_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 4096 + 24 * V + 28 * 5)
    often = [Entry([a, 1], [2], [0.5]) for a in range(5) for _ in range(3)]
    table = build([*often, *(Entry([a, 3], [2], [0.5]) for a in range(15))], V)
    assert all(table.get((a, 1)) for a in range(5))
    assert not any(table.get((a, 3)) for a in range(15))
    save_table(table, FINGERPRINT, tmp_path / "t")
    assert (tmp_path / "t").stat().st_size <= module.MAX_BYTES


def test_contexts_that_say_nothing_new_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 4096 + 24 * V + 28 * 2)
    same = [
        Entry([a, 1, 5], [2], [0.5]) for a in range(4) for _ in range(9)
    ]  # 2 follows 5 and 1, 5, whatever came before
    table = build([*same, Entry([7, 8, 5], [3], [0.5]), Entry([9, 6], [4], [0.5]), Entry([3, 6], [1], [0.5])], V)
    assert table.get((8, 5)) == {3: 127 / 255}
    assert not any(table.get((a, 1, 5)) for a in range(4))


def test_the_longest_context_known_is_asked() -> None:
    source = LongestKnown(
        build([Entry([1, 2, 3, 4], [5], [0.5]), Entry([9, 3, 4], [6], [0.5]), Entry([4], [7], [1.0])], V)
    )
    assert source.propose((8, 1, 2, 3, 4)) == {5: 127 / 255}
    assert source.propose((8, 9, 3, 4)) == {6: 127 / 255}
    assert set(source.propose((8, 3, 4))) == {5, 6}
    assert source.propose((8, 4)) == {} == source.propose((4,))  # one token is another source's


def test_tokens_outside_the_vocabulary_are_no_entries() -> None:
    with pytest.raises(InputError, match="outside the vocabulary"):
        build([Entry([1], [V], [0.5])], V)


def test_it_warms_a_cold_session(toy: Any, trusted: Any, home: Path) -> None:
    model = toy(0)
    said = [([a, b], model.logits([a, b]).softmax(-1).topk(4)) for a in range(V) for b in range(V)]
    (home / "tables").mkdir()
    file = home / "tables" / f"{FINGERPRINT}.safetensors"
    save_table(build([Entry(c, s.indices.tolist(), s.values.tolist()) for c, s in said], V), FINGERPRINT, file)
    assert find_table(FINGERPRINT) == file
    for kind in ("recycling", "auto"):
        cold = model.speculative(build_speculator(f"{kind}:table=none", trusted), [1, 2], 40)
        warm = model.speculative(build_speculator(kind, trusted), [1, 2], 40)
        assert cold.tokens == warm.tokens == model.sequential([1, 2], 40)
        assert warm.trips < 0.6 * cold.trips


def test_sessions_share_a_table_until_its_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "table.safetensors"
    save_table(build(entries(), V), FINGERPRINT, file)
    table = shared_table(file, FINGERPRINT, V)
    assert shared_table(file, FINGERPRINT, V) is table
    save_table(build(entries()[:1], V), FINGERPRINT, file)
    os.utime(file, (1, 1))
    assert shared_table(file, FINGERPRINT, V) is not table


def changed(name: str, change: Callable[[Any], Any]) -> bytes:
    tensors = dict(build(entries(), V).tensors)
    tensors[name] = change(tensors[name])
    return pack(tensors, Purpose("candidate-table", "1", FINGERPRINT))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        pack(build(entries(), V).tensors, Purpose("candidate-table", "1", FINGERPRINT))[:-7],
        pack(build(entries(), V).tensors, Purpose("candidate-table", "1", "0" * 32)),
        pack(build(entries(), V).tensors, Purpose("candidate-table", "2", FINGERPRINT)),
        pack(build(entries(), V).tensors, Purpose("candidate-profile", "1", FINGERPRINT)),
        pack({}, Purpose("candidate-table", "1", FINGERPRINT)),
        changed("token_ids", lambda ids: ids + np.uint16(V)),
        changed("token_ids", lambda ids: ids[:-1]),
        changed("token_ids", lambda ids: ids.astype(np.float32)),
        changed("token_chances", lambda chances: np.full_like(chances, 255)),
        changed("context_keys", lambda keys: keys[::-1].copy()),
        changed("context_keys", lambda keys: np.zeros_like(keys)),
        changed("context_keys", lambda keys: keys[:-1]),
        changed("context_chances", lambda chances: chances[:, :-1].copy()),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: bytes, tmp_path: Path, trusted: Any) -> None:
    file = tmp_path / "table"
    file.write_bytes(content)
    with pytest.raises(InputError, match="table"):
        build_speculator(f"recycling:table={file}", trusted)


def test_files_of_any_length_are_bounded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="longer than"):
        load_table(Path("/dev/zero"), FINGERPRINT, V)
    with pytest.raises(InputError, match="cannot read"):
        load_table(tmp_path / "none", FINGERPRINT, V)


VALID = pack(build(entries(), V).tensors, Purpose("candidate-table", "1", FINGERPRINT))


@given(content=st.binary(max_size=400))
def test_random_bytes_are_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "random"
    file.write_bytes(content)
    with pytest.raises(InputError):
        load_table(file, FINGERPRINT, V)


@given(at=st.integers(0, len(VALID) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_harmless(at: int, byte: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "changed"
    file.write_bytes(VALID[:at] + bytes([byte]) + VALID[at + 1 :])
    try:
        table = load_table(file, FINGERPRINT, V)
    except InputError:
        return
    for context in ((3,), (2, 3)):
        candidates = table.get(context)
        assert all(0 <= token < V for token in candidates)
        assert sum(candidates.values()) <= 1 + 1e-9


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "I64", "F4", "C64", "none"])
def test_other_dtypes_are_refused(dtype: str, tmp_path: Path) -> None:
    file = tmp_path / "dtype"
    file.write_bytes(VALID.replace(b'"U32"', f'"{dtype}"'.encode()))
    with pytest.raises(InputError):
        load_table(file, FINGERPRINT, V)


def test_a_text_has_an_entry_for_every_position_of_the_answer() -> None:
    made = list(entries_of([5, 6, 7, 8], [[1], [2], [3], [4]], [[0.1], [0.2], [0.3], [0.4]], first=1))
    assert made == [Entry([5, 6], [2], [0.2]), Entry([5, 6, 7], [3], [0.3]), Entry([5, 6, 7, 8], [4], [0.4])]
