"""Offline calibration of PriPert's static directions with the whole public model, as `defences` by themselves cannot.

    write_directions(Path("k4.safetensors"), calibrate_directions(directory, k=4, rank=32, ids=public_text))

Then ``pripert:beta=0.2,directions=k4.safetensors``. Nothing secret enters; the attacker can repeat it.

The server's sensitivity is the Fisher information of the model's own predictions about the hidden state at the cut,
G = E[g gᵀ] with g_t = ∂ Σ_s log p(y_s) / ∂h_t and y drawn from the predictions. With y random, the terms of different s
cancel on average, so one backward pass samples every position of a sequence at once.

Notation: S sequences, T positions, D hidden size, V vocabulary, r rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cutlayer.defences.pripert_directions import principal, public_ids, response
from cutlayer.errors import InputError
from cutlayer.models.family import read_config
from cutlayer.models.parts import load_body, load_client
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.models.parts import Body, Head, Tail

_BATCH: Final = 8


def calibrate_directions(
    directory: Path,
    k: int,
    rank: int = 32,
    ids: torch.Tensor | None = None,
    tokens: int = 128,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[float], None] = lambda share: None,
) -> torch.Tensor:
    """Directions that hurt a converged inverter most for the least change of predictions.

    Args:
        directory: model directory.
        k: layers of the client before the cut.
        rank: how many directions.
        ids: [S, T] tokens of public text, at least a few times D of them; None is a pseudo-random sequence, on which
            predictions are unlike those on text.
        tokens: positions behind M.
        seed: of probes and draws.
        device: where to compute.
        progress: told the share done.

    Returns:
        Orthonormal, [D, r].

    Raises:
        InputError: the rank is out of range, or a sequence too short.
        CutError: no such cut.
    """
    layers = read_config(directory).num_hidden_layers
    cut = Cut(k, layers, layers)
    head, tail = load_client(directory, cut, torch.float32, device)
    body = load_body(directory, cut, torch.float32, device)
    chosen = public_ids(len(head.embedding())) if ids is None else ids
    if chosen.dim() != 2 or chosen.shape[1] < 2:
        raise InputError(f"calibration needs sequences [S, T] of at least 2 tokens, not {tuple(chosen.shape)}")
    utility = sensitivity(head, body, tail, chosen, seed, lambda share: progress(0.5 * share))
    directions = principal(response(head, chosen, tokens, seed), utility, rank)
    progress(1.0)
    return directions


def sensitivity(
    head: Head,
    body: Body,
    tail: Tail,
    ids: torch.Tensor,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> torch.Tensor:
    """G at the cut, [D, D] float64: half of δᵀGδ is about the KL divergence, in nats, that δ at one position causes in all.

    Args:
        head: layers before the cut.
        body: layers after it.
        tail: the rest.
        ids: [S, T]; first positions are left out.
        seed: of the draws.
        progress: told the share done.
    """
    device = head.embedding().device
    generator = torch.Generator(device).manual_seed(seed)
    total = torch.zeros(head.embedding().shape[1], head.embedding().shape[1], dtype=torch.float64)
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH].to(device)
        with torch.no_grad():
            hidden = head(batch, head.new_cache())  # [B, T, D]
        hidden.requires_grad_()
        middle = body.shell.base_model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        logits = tail.shell(inputs_embeds=middle, use_cache=False).logits.flatten(0, 1)  # [B · T, V]
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
        likelihood = logits.log_softmax(-1).gather(-1, drawn).sum()
        (slopes,) = torch.autograd.grad(likelihood, hidden)
        rows = slopes[:, 1:].flatten(0, 1).double().cpu()  # [B · (T − 1), D]
        total += rows.T @ rows
        progress(min(1.0, (start + _BATCH) / len(ids)))
    return total / (len(ids) * (ids.shape[1] - 1))
