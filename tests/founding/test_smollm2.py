"""The founding test on the real model, at the cuts people use and at the extremes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cutlayer.models.parts import load_body, load_client
from cutlayer.text.tokenizer import Message, Tokenizer
from cutlayer.types import Cut

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

CUTS = ["0:30", "1:-1", "2:-2", "4:-4", "8:-2"]
TOLERANCE = 1e-4
NEW_TOKENS = 64


@pytest.fixture(scope="module")
def reference(smollm2: Path, prompts: list[Any]) -> list[tuple[torch.Tensor, int, torch.Tensor]]:
    """(prompt and greedy answer [1, T], prompt length, logits [T, V]) of the unsplit model."""
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = Tokenizer(smollm2)
    found = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer.render([Message("user", prompt.text)])])
        with torch.inference_mode():
            whole = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, eos_token_id=-1, do_sample=False
            )
            found.append((whole, ids.shape[1], model(whole).logits[0]))
    return found


@pytest.mark.parametrize("cut", CUTS)
def test_logits_and_greedy_choices_equal_the_unsplit_model(
    cut: str, smollm2: Path, reference: list[tuple[torch.Tensor, int, torch.Tensor]]
) -> None:
    """Given the reference's tokens so far, every next greedy choice is the reference's: so is the whole answer."""
    span = Cut.parse(cut, 30)
    body = load_body(smollm2, span, torch.float32)
    head, tail = load_client(smollm2, span, torch.float32)
    for number, (ids, prompt, expected) in enumerate(reference):
        caches = head.new_cache(), body.new_cache(), tail.new_cache()
        # Whole, then in chunks, then the answer token by token, in turn over the prompts.
        chunks = [ids] if number % 3 == 0 else list(ids.split(16, 1))
        if number % 3 == 2:
            chunks = [ids[:, :prompt], *ids[:, prompt:].split(1, 1)]
        with torch.inference_mode():
            logits = torch.cat([tail(body(head(part, caches[0]), caches[1]), caches[2])[0] for part in chunks])
        assert (logits - expected).abs().max() < TOLERANCE
        assert logits[prompt - 1 : -1].argmax(-1).tolist() == ids[0, prompt:].tolist()
