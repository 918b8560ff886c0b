"""The founding test: split equals unsplit transformers, for every family, cut and chunking."""

from __future__ import annotations

import random
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from cutlayer.models.parts import load_body, load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

TOLERANCE = 1e-4
TOKENS = 48
NEW_TOKENS = 64

FAMILIES = [
    "llama", "llama-tied", "llama-bias", "llama-rope3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
    "phi3", "olmo2", "gpt_neox", "mixtral", "qwen3_moe", "smollm3", "cohere", "starcoder2",
]  # fmt: skip
CUTS = ["0:6", "1:-1", "2:-2", "3:-1", "0:-2", "5:6"]


class Split:
    """All three parts in one process, wired together by function calls."""

    def __init__(self, directory: Path, cut: str, layers: int = 6) -> None:
        span = Cut.parse(cut, layers)
        self.body = load_body(directory, span, torch.float32)
        self.head, self.tail = load_client(directory, span, torch.float32)
        self.reset()

    def reset(self) -> None:
        self.caches = (self.head.new_cache(), self.body.new_cache(), self.tail.new_cache())

    def rollback(self, position: int) -> None:
        self.keep(position)

    def keep(self, anchor: int, path: Sequence[int] = ()) -> None:
        for held in self.caches:
            held.keep(anchor, path)

    @torch.inference_mode()
    def run(self, ids: torch.Tensor, chunk: int) -> torch.Tensor:
        """Token ids [1, T] → logits [1, T, V], `chunk` at a time."""
        head, body, tail = self.caches
        return torch.cat(
            [self.tail(self.body(self.head(part, head), body), tail) for part in ids.split(chunk, dim=1)], dim=1
        )

    @torch.inference_mode()
    def branch(self, ids: torch.Tensor, backs: Sequence[int]) -> torch.Tensor:
        """Token ids [1, T], each following the one so far back → logits [1, T, V]."""
        head, body, tail = self.caches
        return self.tail(self.body(self.head(ids, head, backs), body, backs), tail, backs=backs)


@cache
def unsplit(directory: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(directory).eval()


@pytest.fixture(params=FAMILIES)
def directory(request: pytest.FixtureRequest, tiny: Callable[[str], Path]) -> Path:
    return tiny(request.param)


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 101, (1, TOKENS), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("cut", CUTS)
def test_logits_equal_at_every_cut_and_chunking(directory: Path, cut: str, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        expected = unsplit(directory)(ids).logits
    split = Split(directory, cut)
    for chunk in (TOKENS, 7, 1):
        split.reset()
        error = (split.run(ids, chunk) - expected).abs().max().item()
        assert error < TOLERANCE, f"chunk {chunk}"


def test_logits_equal_after_rollback(directory: Path, ids: torch.Tensor) -> None:
    """Rolling back past a sliding window and going on another way leaves no trace of the first way."""
    split = Split(directory, "2:-2")
    split.run(ids, 9)
    split.rollback(20)
    other = torch.cat([ids[:, :20], ids.flip(1)[:, :25]], dim=1)
    with torch.inference_mode():
        expected = unsplit(directory)(other).logits
    error = (split.run(other[:, 20:], 5) - expected[:, 20:]).abs().max().item()
    assert error < TOLERANCE


class Guesses:
    """A split model that holds a tree of tokens, and what each of them follows by the test's own account."""

    def __init__(self, directory: Path, cut: str, seed: int) -> None:
        self.split = Split(directory, cut)
        self.model = unsplit(directory)
        self.chance = random.Random(seed)
        self.tokens: list[int] = []
        self.parents: list[int] = []

    def path(self, slot: int) -> list[int]:
        """The slots up to `slot`."""
        return [*(self.path(self.parents[slot]) if self.parents[slot] >= 0 else ()), slot]

    def grow(self, count: int, branched: bool) -> float:
        """Run more tokens; the greatest difference to unsplit transformers on each token's own path."""
        base = len(self.tokens)
        # A few turn back far, most go on near the end, so that the tree is wide and deeper than a window.
        backs = [min(slot, self.chance.choice([1, 1, 1, 1, 2, 3, 7])) for slot in range(base, base + count)]
        if not branched:
            backs = [1] * count
        self.tokens += [self.chance.randrange(3, 101) for _ in range(count)]
        self.parents += [base + row - back for row, back in enumerate(backs)]
        logits = self.split.branch(torch.tensor([self.tokens[base:]]), backs if branched else ())[0]  # [T, V]
        return (logits - self.unsplit(range(base, base + count))).abs().max().item()

    def unsplit(self, slots: Sequence[int]) -> torch.Tensor:
        """Logits [T, V] after each of T slots; what fills shorter paths up comes after their end."""
        paths = [self.path(slot) for slot in slots]
        rows = torch.zeros(len(paths), max(map(len, paths)), dtype=torch.long)  # [T, S]
        for row, path in zip(rows, paths, strict=True):
            row[: len(path)] = torch.tensor([self.tokens[slot] for slot in path])
        with torch.inference_mode():
            return self.model(rows).logits[range(len(paths)), [len(path) - 1 for path in paths]]

    def keep(self) -> int:
        """Keep the path to one of the last slots and forget the others; how many slots move."""
        path = self.path(len(self.tokens) - 1 - self.chance.randrange(4))
        moved = sum(slot != position for position, slot in enumerate(path))
        anchor = len(path) - moved - self.chance.randrange(3)
        self.split.keep(anchor, [slot - anchor for slot in path[anchor:]])
        self.tokens = [self.tokens[slot] for slot in path]
        self.parents = list(range(-1, len(path) - 1))
        return moved


@pytest.mark.parametrize("cut", ["2:-2", "0:-1", "1:6"])
def test_trees_equal_unsplit_on_every_path(directory: Path, cut: str) -> None:
    """Guesses that branch, more guesses after them, a path that is kept, and on from there, twice."""
    guesses = Guesses(directory, cut, seed=2)
    assert guesses.grow(13, branched=False) < TOLERANCE
    for _ in range(2):
        assert guesses.grow(16, branched=True) < TOLERANCE
        assert guesses.grow(9, branched=True) < TOLERANCE
        assert guesses.grow(1, branched=False) < TOLERANCE
        assert guesses.keep() > 3
        assert guesses.grow(5, branched=False) < TOLERANCE


def test_greedy_tokens_identical_to_generate(directory: Path, ids: torch.Tensor) -> None:
    prompt = ids[:, :10]
    with torch.inference_mode():
        expected = unsplit(directory).generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=-1
        )[0, 10:]
    split = Split(directory, "2:-2")
    logits = split.run(prompt, 4)
    produced: list[int] = []
    for _ in range(NEW_TOKENS):
        produced.append(int(logits[0, -1].argmax()))
        logits = split.run(torch.tensor([[produced[-1]]]), 1)
    assert produced == expected.tolist()


def test_each_side_opens_only_its_own_tensors(directory: Path) -> None:
    """No tensor is opened by both, together they open the checkpoint, and the server touches nothing at the edges."""
    from cutlayer.models.checkpoint import Checkpoint

    span = Cut.parse("2:-2", 6)
    server = set(load_body(directory, span, torch.float32).opened)
    client = set(load_client(directory, span, torch.float32).head.opened)
    assert not server & client
    assert server | client == set(Checkpoint(directory).names())
    assert all(".layers." in name and int(name.split(".layers.")[1].split(".")[0]) in range(2, 4) for name in server)


def test_sharded_checkpoint_opens_only_the_shards_it_needs(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """The server's shards are enough for the server: the others may be absent from its disk."""
    model = unsplit(tiny("llama"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = (tmp_path / "model.safetensors.index.json").read_text()
    assert index.count(".safetensors") > 3
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        expected = model(ids).logits
    assert (Split(tmp_path, "2:-2").run(ids, 5) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_equals_unsplit_in_the_same_precision(dtype: torch.dtype, tiny: Callable[[str], Path]) -> None:
    directory = tiny("llama")
    ids = torch.arange(3, 30)[None]
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
    span = Cut.parse("2:-2", 6)
    body = load_body(directory, span, dtype)
    head, tail = load_client(directory, span, dtype)
    with torch.inference_mode():
        expected = model(ids).logits
        logits = tail(body(head(ids, head.new_cache()), body.new_cache()), tail.new_cache())
    assert logits.dtype is dtype
    assert (logits - expected).abs().max() <= 4 * torch.finfo(dtype).eps * expected.abs().max()
