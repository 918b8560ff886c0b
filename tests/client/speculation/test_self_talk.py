"""Conversations in batches are what the model says and computes one at a time."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
LAYER = 3
ROUNDING = 0.05
"""Of bfloat16, through a few layers."""


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_batch_is_what_the_model_says_alone(
    tiny_with_text: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    self_talk = importlib.import_module("self_talk")
    monkeypatch.setattr(self_talk, "_THINNED", 1.1)  # whoever ends leaves the batch at once
    directory = tiny_with_text("llama")
    writer = self_talk.Writer(directory, LAYER)
    prompts = [[7 + i * (j + 3) % 90 for i in range(3 + 4 * j)] for j in range(5)]
    torch.manual_seed(1)
    batch = writer._go_on(prompts, 12, temperature)
    model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for prompt, said in zip(prompts, batch, strict=True):
        example = self_talk._example(said)
        assert said.prompt == prompt
        assert example.ids.tolist() == [*prompt, *said.ids[:-1]]
        with torch.inference_mode():
            output = model(input_ids=example.ids[None].long(), output_hidden_states=True)
        states = output.hidden_states[LAYER + 1][0]
        assert float((example.returned.float() - states).norm() / states.norm()) < ROUNDING
        chances = output.logits[0, len(prompt) - 1 :].softmax(-1)
        found = example.chances[len(prompt) - 1 :].float()
        expected = chances.gather(1, example.likely[len(prompt) - 1 :].long())
        assert float((found - expected).abs().max()) < ROUNDING
        assert not example.chances[: len(prompt) - 1].any()
        assert int(example.answer) == len(prompt)
