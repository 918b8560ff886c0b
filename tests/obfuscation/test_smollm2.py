"""The real model, exactly obfuscated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from cutlayer.text.tokenizer import Message, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Exported

pytestmark = pytest.mark.model


def test_logits_and_greedy_tokens(smollm2: Path, prompts: list[Any], exported: Callable[..., Exported]) -> None:
    made = exported(smollm2)
    plain, obfuscated = made.models()
    ids = torch.tensor([Tokenizer(smollm2).render([Message("user", prompts[0].text)])])
    tau, length = made.tau, {"min_new_tokens": 64, "max_new_tokens": 64, "do_sample": False}
    with torch.inference_mode():
        expected = plain.generate(ids, attention_mask=torch.ones_like(ids), **length)
        found = obfuscated.generate(tau[ids], attention_mask=torch.ones_like(ids), **length)
        error = (obfuscated(tau[expected]).logits[..., tau] - plain(expected).logits).abs()
    assert torch.equal(found, tau[expected])
    # Logits reach 38 here, and the plain model's own float32 ones are up to 8e-5 from its float64 ones.
    assert error.max() < 2e-4
    assert (error < 1e-4).double().mean() > 0.9999
