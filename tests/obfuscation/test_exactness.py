"""Without noise an export answers as its base does, for every family, shape and single secret."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoModelForCausalLM

from cutlayer.obfuscation.settings import COMPONENTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Exported

TOLERANCE = 1e-4
NEW_TOKENS = 64

EXACT = [
    "llama", "llama-tied", "llama-bias", "llama-rope3", "mistral", "qwen2", "qwen3", "gemma", "mixtral", "qwen3_moe",
]  # fmt: skip
MONOMIAL = ["gemma2", "gemma3_text"]


def prompts() -> torch.Tensor:
    return torch.randint(3, 101, (3, 40), generator=torch.Generator().manual_seed(7))


@torch.inference_mode()
def assert_equal(made: Exported) -> None:
    """Logits of whole prompts and of a cached continuation, and the greedy tokens of `generate`."""
    plain, obfuscated = made.models()
    tau, ids = made.tau, prompts()
    logits = plain(ids).logits
    assert (obfuscated(tau[ids]).logits[..., tau] - logits).abs().max() < TOLERANCE
    prefill = obfuscated(tau[ids[:, :30]], use_cache=True)
    decoded = obfuscated(tau[ids[:, 30:]], past_key_values=prefill.past_key_values).logits
    assert (decoded[..., tau] - logits[:, 30:]).abs().max() < TOLERANCE
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS, "do_sample": False}
    expected = plain.generate(ids, attention_mask=torch.ones_like(ids), **length)
    found = obfuscated.generate(tau[ids], attention_mask=torch.ones_like(ids), **length)
    assert expected.shape[1] == ids.shape[1] + NEW_TOKENS
    assert torch.equal(found, tau[expected])


@pytest.mark.parametrize("family", EXACT)
def test_exact_mode(family: str, tiny: Callable[[str], Path], exported: Callable[..., Exported]) -> None:
    assert_equal(exported(tiny(family)))


@pytest.mark.parametrize("family", [*MONOMIAL, "llama", "qwen3_moe"])
def test_monomial_mode(family: str, tiny: Callable[[str], Path], exported: Callable[..., Exported]) -> None:
    assert_equal(exported(tiny(family), mode="monomial"))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("ratio", [1, 3, 7])
def test_grouped_heads_with_a_wider_hidden_state(
    kind: str, ratio: int, grouped: Callable[[str, int], Path], exported: Callable[..., Exported]
) -> None:
    base = grouped(kind, ratio)
    heads = {1: 4, 3: 6, 7: 7}[ratio]
    made = exported(base, expand=12 * heads)
    assert_equal(made)
    plain, obfuscated = made.models()
    assert obfuscated.config.hidden_size == plain.config.hidden_size + 4 * heads
    assert obfuscated.config.model_type == ("llama" if kind == "qwen2" else kind)


# Norms are folded into readers in any case, so embedding, writers, biases and head norms tell what a secret touches.
WATCHED = ("embed_tokens", "o_proj", "down_proj", "k_proj.bias", "q_norm")
TOUCHED = {
    "vocabulary": {"embed_tokens"},
    "hidden": {"embed_tokens", "o_proj", "down_proj"},
    "rotary": {"k_proj.bias", "q_norm"},
    "values": {"o_proj"},
    "heads": {"o_proj", "k_proj.bias"},
    "ffn": {"down_proj"},
    "experts": {"experts.down_proj"},
}


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("family", ["llama-bias", "qwen3_moe"])
def test_each_secret_alone(
    family: str, component: str, tiny: Callable[[str], Path], exported: Callable[..., Exported]
) -> None:
    made = exported(tiny(family), components=(component,))
    assert_equal(made)
    plain, obfuscated = (dict(model.named_parameters()) for model in made.models())
    changed = [name for name in plain if not torch.equal(plain[name], obfuscated[name])]
    expected = {part for part in TOUCHED[component] if any(part in name for name in plain)}
    assert {part for part in expected if any(part in name for name in changed)} == expected
    assert not [name for name in changed if name.endswith(tuple(f"{part}.weight" for part in set(WATCHED) - expected))]


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen3"])
def test_hidden_states_are_the_plain_ones_in_another_basis(
    family: str, tiny: Callable[[str], Path], exported: Callable[..., Exported]
) -> None:
    """At every layer one linear map with PPᵀ = s²I leads from the plain states to those of the export."""
    made = exported(tiny(family), expand=48)
    plain, obfuscated = made.models()
    ids = prompts()
    with torch.inference_mode():
        before = plain(ids, output_hidden_states=True).hidden_states[
            :-1
        ]  # the last one has gone through the final norm
        after = obfuscated(made.tau[ids], output_hidden_states=True).hidden_states[:-1]
    rows = torch.cat([state.flatten(0, 1) for state in before]).double()
    wide = torch.cat([state.flatten(0, 1) for state in after]).double()
    key = torch.linalg.lstsq(rows, wide).solution  # P̂, [d, D]
    assert (rows @ key - wide).norm() < 1e-3 * wide.norm()
    assert (key @ key.T - 48 / 32 * torch.eye(32, dtype=torch.float64)).abs().max() < 1e-3


@pytest.mark.parametrize("family", [*EXACT, *MONOMIAL])
def test_loads_with_plain_transformers_without_warnings(
    family: str, tiny: Callable[[str], Path], exported: Callable[..., Exported]
) -> None:
    made = exported(tiny(family), mode="monomial" if family in MONOMIAL else "exact")
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(listener)
    try:
        _, info = AutoModelForCausalLM.from_pretrained(made.directory, output_loading_info=True)
    finally:
        logger.removeHandler(listener)
    assert said == []
    assert not any(info.values()), info


def test_sixteen_bit_export_is_as_close_as_its_dtype(
    tiny: Callable[[str], Path], exported: Callable[..., Exported]
) -> None:
    made = exported(tiny("llama"), dtype="bfloat16")
    ids = prompts()
    with torch.inference_mode():
        plain, obfuscated = load_both(made)
        error = (obfuscated(made.tau[ids]).logits[..., made.tau] - plain(ids).logits).abs().max()
    assert error < 16 * torch.finfo(torch.bfloat16).eps * plain(ids).logits.abs().max()


def load_both(made: Exported) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The base and the export, both computing in float32."""
    return tuple(
        AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
        for directory in (made.base, made.directory)
    )


def test_noise_changes_answers_as_much_as_it_says(
    tiny: Callable[[str], Path], exported: Callable[..., Exported]
) -> None:
    """The embedding's noise, brought back to the plain basis, has the asked-for deviation; the head's likewise."""
    made = exported(tiny("llama"), mode="noisy", alpha_e=0.5, alpha_h=0.25)
    silent = exported(tiny("llama"), mode="noisy", alpha_e=0.0, alpha_h=0.0, name="silent")
    plain, noisy = made.models()
    _, clean = silent.models()
    folded = float(plain.state_dict()["model.norm.weight"].square().mean().sqrt())
    for name, expected in (("model.embed_tokens.weight", 0.5), ("lm_head.weight", 0.25 * folded)):
        own, silenced, changed = (model.state_dict()[name] for model in (plain, clean, noisy))
        assert float((changed - silenced).std()) == pytest.approx(expected * float(own.std()), rel=0.1)
