"""A small local model as drafter: right when it is the model itself, refused when its tokens mean something else."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cutlayer.client.speculation.model import DraftModel, load_drafter
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.errors import InputError, ModelNotFoundError
from cutlayer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VOCABULARY = 101
PROMPT = [7, 30, 61, 8, 30]


@pytest.fixture
def directory(tiny_with_text: Callable[[str], Path]) -> Path:
    return tiny_with_text("llama")


@pytest.fixture
def verifier(directory: Path) -> Any:
    head = SimpleNamespace(embedding=lambda: torch.empty(VOCABULARY, 4))
    return SimpleNamespace(
        info=SimpleNamespace(fingerprint="f" * 32),
        parts=SimpleNamespace(head=head),
        tokenizer=Tokenizer(directory),
        dtype="float32",
        turn=threading.Lock(),
    )


def greedy(directory: Path, ids: list[int], count: int) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.inference_mode():
        for _ in range(count):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids[-count:]


def test_the_model_itself_drafts_its_own_answer(directory: Path) -> None:
    model = DraftModel(load_drafter(directory, torch.float32), VOCABULARY, threading.Lock(), depth=4, beside=2)
    for ids in (PROMPT, [*PROMPT, 9, 9], PROMPT[:3], [1, *PROMPT]):  # rolled back and changed in between
        draft = model.draft(ids, 99)
        chain = [node for node in range(len(draft)) if node % 3 == 0]
        expected = greedy(directory, ids, len(chain))
        assert [draft.tokens[node] for node in chain] == expected
        assert [draft.parents[node] for node in chain] == [-1, *chain[:-1]]
        assert list(draft.chances[:3]) == sorted(draft.chances[:3], reverse=True)


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_more_nodes_than_asked_for(directory: Path, most: int) -> None:
    model = DraftModel(load_drafter(directory, torch.float32), VOCABULARY, threading.Lock(), beside=8)
    assert len(model.draft(PROMPT, most)) == most


def test_it_is_a_speculator(directory: Path, verifier: Any) -> None:
    speculator = build_speculator(f"model:path={directory}", verifier)
    draft = speculator.draft(PROMPT, 12)
    assert draft.child(-1, greedy(directory, PROMPT, 1)[0]) is not None
    assert all(0 < chance <= 1 for chance in draft.chances)


def test_another_vocabulary_is_refused(tiny_with_text: Callable[[str], Path], verifier: Any, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(tiny_with_text("llama"), other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"~"', '"€"'))
    with pytest.raises(InputError, match="another vocabulary"):
        build_speculator(f"model:path={other}", verifier)


def test_a_drafter_has_to_be_there(verifier: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        build_speculator(f"model:path={tmp_path / 'none'}", verifier)
    with pytest.raises(InputError, match="path"):
        build_speculator("model", verifier)
