"""The draft head as it guesses: against itself unrolled over whole texts, and as a speculator of real sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from cutlayer.client.connect import Client, Options
from cutlayer.client.speculation.draft import ROOT, Draft
from cutlayer.client.speculation.head.acceptance import walks
from cutlayer.client.speculation.head.examples import Example
from cutlayer.client.speculation.head.file import save_head
from cutlayer.client.speculation.head.guessing import HeadSpeculator
from cutlayer.client.speculation.head.network import DraftHead
from cutlayer.client.speculation.head.unroll import unroll
from cutlayer.client.speculation.speculator import States, Verified
from cutlayer.errors import InputError
from cutlayer.models.packed import can_pack
from cutlayer.models.parts import load_client
from cutlayer.models.weights import keep_weights
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.types import Cut

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

VOCABULARY, HIDDEN, LAYERS = 101, 32, 6


@pytest.fixture
def lock() -> threading.Lock:
    import threading

    return threading.Lock()


def random_head(directory: Path, tail_layers: int = 2) -> DraftHead:
    """A head whose every part matters."""
    torch.manual_seed(11)
    parts = load_client(directory, Cut(2, LAYERS - tail_layers, LAYERS), torch.float32)
    head = DraftHead(parts, torch.arange(5, 95, 15), rank=8)
    for weight in head.trained().values():
        weight.data.normal_(0, 0.3)
    return head.requires_grad_(False).eval()


@pytest.mark.skipif(
    not can_pack(torch.zeros(1, 1, dtype=torch.bfloat16)), reason="this processor does not compute in bfloat16"
)
def test_a_client_whose_tail_is_packed_makes_the_same_head(tiny: Callable[[str], Path]) -> None:
    plain, packed = (load_client(tiny("llama"), Cut(2, LAYERS - 2, LAYERS), torch.bfloat16) for _ in range(2))
    keep_weights(packed.tail, "dtype")
    states = []
    for parts in (plain, packed):
        torch.manual_seed(7)
        states.append(DraftHead(parts, torch.arange(5, 95, 15), rank=8).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def shown(ids: Sequence[int], returned: torch.Tensor, base: int = 0) -> Verified:
    """A session that verified these tokens from `base` on as a chain."""
    rows = range(base, len(ids))
    states = States(torch.empty(0), returned[base : len(ids)])
    return Verified(base, ids[base:], [row - base - 1 for row in rows], torch.empty(0), range(len(rows)), states)


def paths(draft: Draft) -> Iterator[list[int]]:
    """From a first guess to every leaf, as nodes."""
    for leaf in set(range(len(draft))) - set(draft.parents):
        path = [leaf]
        while draft.parents[path[0]] != ROOT:
            path.insert(0, draft.parents[path[0]])
        yield path


@pytest.fixture(autouse=True)
def every_guess_is_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads drawn at random are sure of nothing, and would stop early."""
    monkeypatch.setattr("cutlayer.client.speculation.head.beam._FLOOR", 0.0)


@pytest.mark.parametrize(
    "family", ["llama", "llama-tied", "qwen2", "gemma2", "gemma3_text", "phi3", "gpt_neox", "mixtral", "cohere"]
)
def test_guesses_are_those_of_the_head_unrolled_over_the_text_with_them(
    tiny: Callable[[str], Path], family: str, lock: threading.Lock
) -> None:
    """Two ways to the same distributions: a tree in a cache that is rolled back, and whole texts under masks."""
    head = random_head(tiny(family))
    ids = [7 + i * 13 % 80 for i in range(14)]
    returned = torch.randn(20, HIDDEN)
    speculator = HeadSpeculator(head, lock, depth=4, breadth=3)
    speculator.observe(shown(ids[:-1], returned))
    draft = speculator.draft(ids, 60)
    assert max(len(path) for path in paths(draft)) >= 3
    for path in paths(draft):
        text = torch.tensor([[*ids, *(draft.tokens[node] for node in path)]])
        with torch.inference_mode():
            passes = list(unroll(head, text, returned[None, : text.shape[1]], len(path)))
        for depth, node in enumerate(path):
            chances = passes[depth][0, len(ids) - 1 + depth].softmax(-1)
            place = head.vocabulary.tolist().index(draft.tokens[node])
            assert draft.chances[node] == pytest.approx(float(chances[place]), abs=1e-4)


def test_guesses_depend_on_the_text_alone_and_not_on_how_the_session_came_to_it(
    tiny: Callable[[str], Path], lock: threading.Lock
) -> None:
    head = random_head(tiny("llama"))
    ids = [7 + i * 13 % 80 for i in range(20)]
    returned = torch.randn(20, HIDDEN)
    fresh = HeadSpeculator(head, lock)
    fresh.observe(shown(ids[:-1], returned))
    expected = fresh.draft(ids, 30)
    assert len(expected) == 30

    wandering = HeadSpeculator(head, lock)
    wandering.observe(shown(ids[:6], returned))
    wandering.draft([*ids[:6], 50], 30)
    wandering.observe(shown([*ids[:6], 50, 51], torch.randn(8, HIDDEN), base=6))
    wandering.draft([*ids[:6], 50, 51, 52], 30)
    # A tree of three rows is verified, the last two of which follow the first; the second of them is right.
    tree = Verified(
        6, [ids[6], 60, ids[7]], [-1, 0, 0], torch.empty(0), [0, 2], States(torch.empty(0), returned[[6, 0, 7]])
    )
    wandering.observe(tree)
    wandering.observe(shown(ids[:-1], returned, base=8))
    for found in (wandering.draft(ids, 30), fresh.draft(ids, 30)):
        assert found.tokens == expected.tokens
        assert found.chances == pytest.approx(expected.chances, abs=1e-5)


def test_without_the_states_of_a_text_nothing_is_guessed(tiny: Callable[[str], Path], lock: threading.Lock) -> None:
    head = random_head(tiny("llama"))
    ids, returned = list(range(7, 17)), torch.randn(10, HIDDEN)
    speculator = HeadSpeculator(head, lock)
    assert not speculator.draft(ids, 8)
    speculator.observe(shown(ids[:-1], returned, base=4))  # what came before went by unseen
    assert speculator.draft(ids, 8)
    assert not speculator.draft([*ids, 20], 8)
    assert not speculator.draft([7, 8, 9, 10, 99, *ids[5:]], 8)
    assert not speculator.draft(ids, 0)


@pytest.mark.parametrize("depth", [1, 3])
def test_walks_count_the_round_trips_of_a_session_with_chains(
    tiny: Callable[[str], Path], lock: threading.Lock, depth: int
) -> None:
    head = random_head(tiny("llama"))
    returned = torch.randn(40, HIDDEN)
    ids = [7, 8, 9]
    oracle = HeadSpeculator(head, lock, depth=1, breadth=1)
    while len(ids) < 40:  # a text that the head guesses now and then
        oracle.observe(shown(ids[:-1], returned))
        ids.append(int(oracle.draft(ids, 1).tokens[0]) if len(ids) % 3 else 10 + len(ids))
    at, trips = 4, 0
    while at < len(ids) - 1:
        speculator = HeadSpeculator(head, lock, depth=depth, breadth=1)
        speculator.observe(shown(ids[:at], returned))
        guesses = speculator.draft(ids[: at + 1], depth).tokens
        right = next((i for i, (a, b) in enumerate(zip(guesses, ids[at + 1 :], strict=False)) if a != b), len(guesses))
        at += min(right, len(ids) - 1 - at) + 1
        trips += 1
    tokens = torch.tensor(ids, dtype=torch.int32)
    example = Example(tokens, returned, tokens[:, None], torch.ones(40, 1), torch.tensor([4]))
    walk = walks(head, [example], depth)[0]
    assert (walk.tokens, walk.trips) == (35, trips)
    assert trips < 35


def test_a_cut_that_leaves_the_client_no_layer_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="leaves it none"):
        random_head(tiny("llama"), tail_layers=0)


@pytest.fixture(scope="module")
def server(tiny_with_text: Callable[[str], Path]) -> Iterator[LocalServer]:
    with LocalServer(build_service(tiny_with_text("llama"), "tiny", "2:-2", "float32")) as server:
        yield server


def test_answers_are_the_same_with_a_head_and_take_fewer_round_trips(
    server: LocalServer, tiny_with_text: Callable[[str], Path], tmp_path: Path
) -> None:
    model = str(tiny_with_text("llama"))
    prompts = [[7 + i * (j + 3) % 90 for i in range(9)] for j in range(4)]

    def answered(speculate: str) -> list[Any]:
        with Client(server.connect, Options(model=model, speculate=speculate)) as client:
            return [client.generate(ids, max_tokens=24, ignore_eos=True).result() for ids in prompts]

    file = tmp_path / "head.safetensors"
    with Client(server.connect, Options(model=model, speculate="off")) as client:
        torch.manual_seed(5)
        save_head(DraftHead(client.parts, torch.arange(VOCABULARY), rank=4), client.trusted, {}, file)
    plain, guessed = answered("off"), answered(f"head:path={file},depth=3,breadth=8")
    assert [result.token_ids for result in guessed] == [result.token_ids for result in plain]
    assert sum(result.guessed for result in guessed) > 0
    assert sum(result.steps for result in guessed) < sum(result.steps for result in plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_folded_for_guessing_guesses_the_same(tiny: Callable[[str], Path], dtype: torch.dtype) -> None:
    head = random_head(tiny("llama"))
    ids, before = torch.randint(0, VOCABULARY, (1, 7)), torch.randn(1, 7, HIDDEN)
    with torch.inference_mode():
        for own in (False, True):
            expected = head(head.inputs(ids, before, own=own), head.new_cache()).logits
            folded = random_head(tiny("llama")).folded(dtype)
            assert not folded.trained()
            found = folded(folded.inputs(ids, before, own=own), folded.new_cache()).logits.float()
            limit = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
            assert float((found - expected).norm() / expected.norm()) < limit
