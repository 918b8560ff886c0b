"""Embeddings to tokens, left to right, by trying what each candidate token would have sent.

Candidates at a position are the table's neighbours of the embedding found there and what a language model expects next. The
one that best explains the observation, given the tokens already chosen, is taken (adaptive discretisation: PIA,
arXiv 2503.09022). Several prompts are read at once, as a forest in one token tree.

Notation: B prompts, T positions, D hidden size, N sessions, C candidates, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cutlayer.attacks.tree import TreeForward

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.attacks.attack import Observation
    from cutlayer.attacks.matching import Lookup
    from cutlayer.attacks.prior import Prior
    from cutlayer.defences.channel import Channel
    from cutlayer.models.parts import Head

    Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    """What left at one position [N, D], candidate states [C, D] → how well each explains it, [C], in nats."""


class Reading(NamedTuple):
    """Tokens chosen for one prompt."""

    tokens: torch.Tensor
    """[T] token ids."""
    confidence: torch.Tensor
    """[T]: the chosen token's share of a softmax over the scores."""
    candidates: int
    """Evaluated in all."""


def calibrate(
    head: Head,
    lookup: Lookup,
    score: Score,
    observations: Sequence[Observation],
    embeddings: Sequence[torch.Tensor],
    neighbours: int = 10,
    prior: Prior | None = None,
    speculated: int = 10,
) -> list[Reading]:
    """Choose tokens for every prompt.

    Args:
        head: the layers that candidates are run through.
        lookup: from embeddings to tokens.
        score: how well a state explains what left.
        observations: one per prompt.
        embeddings: found for it, [T, D] each.
        neighbours: candidates from the table at every position.
        prior: language model; None looks at the table alone.
        speculated: candidates from the language model at every position.
    """
    device = head.embedding().device
    released = [observation.released.to(device) for observation in observations]
    near = [lookup(place, neighbours).tokens.tolist() for place in embeddings]
    lengths = [len(place) for place in embeddings]
    tree, text = TreeForward(head), prior.session() if prior else None
    expected = _best(prior.first()[None], speculated) * len(near) if prior else [[] for _ in near]
    parents, spoken = [-1] * len(near), [-1] * len(near)  # last node of every prompt in either tree
    said = 0
    tokens: list[list[int]] = [[] for _ in near]
    confidence: list[list[float]] = [[] for _ in near]
    tried = [0] * len(near)
    for t in range(max(lengths)):
        active = [i for i, length in enumerate(lengths) if length > t]
        candidates = [list(dict.fromkeys([*near[i][t], *expected[i]])) for i in active]
        counts = [len(ids) for ids in candidates]
        held = len(tree)
        states = tree.extend(
            [token for ids in candidates for token in ids],
            [parents[i] for i, count in zip(active, counts, strict=True) for _ in range(count)],
        )
        nodes = list(range(held))
        for i, ids, rows in zip(active, candidates, torch.split(states, counts), strict=True):
            share = torch.softmax(score(released[i][:, t], rows), dim=-1)  # [C]
            best = int(share.argmax())
            tokens[i].append(ids[best])
            confidence[i].append(float(share[best]))
            nodes.append(held + sum(counts[: active.index(i)]) + best)
            parents[i] = len(nodes) - 1
            tried[i] += len(ids)
        tree.keep(nodes)
        going = [i for i in active if lengths[i] > t + 1]
        if text and going:
            log_probs = text.extend([tokens[i][-1] for i in going], [spoken[i] for i in going])  # [B, V]
            for i, best_next in zip(going, _best(log_probs, speculated), strict=True):
                expected[i], spoken[i], said = best_next, said, said + 1
    return [Reading(torch.tensor(tokens[i]), torch.tensor(confidence[i]), tried[i]) for i in range(len(near))]


def log_likelihood(channel: Channel, observation: Observation, states: torch.Tensor) -> float:
    """Of everything that left, if the hidden states were [T, D]; nats, up to a constant."""
    released = observation.released.to(states.device)
    return sum(float(channel.log_likelihood(released[:, t], states[t : t + 1])) for t in range(len(states)))


def _best(log_probs: torch.Tensor, count: int) -> list[list[int]]:
    found: list[list[int]] = log_probs.topk(count, dim=-1).indices.tolist()
    return found
