"""Private models at some distance from a public one: noise, random low-rank changes, and fine-tuning by low-rank corrections."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from cutlayer.attacks.lora import LoraLinear, adapt
from cutlayer.models.checkpoint import Checkpoint
from lazy_export import Change

RANK = 16
"""Of low-rank changes, random or learned."""
STEPS = (8, 32, 128)
"""Of fine-tuning, after which distance and attack are measured."""
RATE = 3e-3
BATCH, LENGTH = 2, 64
_ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def noise(strength: float) -> Change:
    """Gaussian, on every matrix."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2:
            return tensor
        return tensor + strength * tensor.std() * torch.randn(tensor.shape, generator=_generator(name))

    return change


def low_rank(strength: float) -> Change:
    """A product of two random matrices, on every matrix inside the layers."""

    def change(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dim() < 2 or ".layers." not in name:
            return tensor
        drawn = _generator(name)
        delta = torch.randn(len(tensor), RANK, generator=drawn) @ torch.randn(RANK, tensor.shape[1], generator=drawn)
        changed: torch.Tensor = tensor + strength * tensor.norm() / delta.norm() * delta
        return changed

    return change


def fine_tune(base: Path, texts: list[list[int]]) -> Iterator[tuple[int, Change]]:
    """Train low-rank corrections on texts; gives (steps so far, what they change of the base) after each of `STEPS`."""
    torch.manual_seed(0)
    model = load(base)
    adapt(model, _ADAPTED, RANK, 2.0 * RANK)
    corrected = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    for step in range(1, max(STEPS) + 1):
        loss = torch.zeros(())
        for number in range(BATCH):
            ids = torch.tensor([texts[(BATCH * step + number) % len(texts)][:LENGTH]])
            logits = model(ids, use_cache=False).logits[0, :-1]
            loss = loss + cross_entropy(logits, ids[0, 1:]) / BATCH
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        sys.stderr.write(f"step {step}, loss {loss.item():.3f}\n")
        if step in STEPS:
            deltas = {f"{name}.weight": (one.scale * one.b @ one.a).detach().clone() for name, one in corrected.items()}
            yield step, lambda name, tensor, deltas=deltas: tensor + deltas[name] if name in deltas else tensor  # type: ignore[misc]


def fill(model: Any, base: Path, change: Change) -> None:
    """Give a model the changed weights of its checkpoint."""
    held = Checkpoint(base)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in held.names():
            if name in parameters:
                parameters[name].copy_(change(name, held.read(name).float()))


def load(directory: Path) -> Any:
    """A whole model in float32."""
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()


def _generator(name: str) -> torch.Generator:
    """The same draws whenever a tensor is read."""
    return torch.Generator().manual_seed(crc32(name.encode()))
