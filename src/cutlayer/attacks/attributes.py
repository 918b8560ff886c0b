"""Attribute inference: what kind of text it is, from hidden states that no longer give its tokens away.

    reader = fit_attribute(states, ["medical", "legal", …], seed=0)
    guesses = reader.predict(unseen)

Source         the usual property-inference baseline, no single paper
Threat model   owns labelled texts and can send them through the same cut and defence; needs no weights
Method         released states are standardised, averaged over the positions of a text, and classified
Parameters     none but the seed; use at least 2,000 labelled texts
Expected       far above the majority share wherever tokens are readable (derived). Averaging over T positions divides
               independent noise by √T, so attributes outlive tokens: a defence that stops every token attack may still
               tell the topic.

Footgun: labels are to be judged against the majority share, with balanced accuracy; `cutlayer.audit` does that.

Notation: S texts, T positions (may differ between texts), D hidden size, C labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from cutlayer.attacks.inverter import Standard
from cutlayer.attacks.training import Recipe, Split, fit, seeded
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_HIDDEN: Final = 128
_HELD_SHARE: Final = 0.2
_RECIPE: Final = Recipe(steps=300, batch=128, rate=3e-3, decay=0.1, checks=30, patience=5)


class AttributeReader:
    """A trained classifier.

    Args:
        classifier: pooled states [S, D] → scores [S, C].
        pool: a text's states [T, D] → [D].
        labels: C names.
        kind: which classifier the attacker's held-back texts favoured, ``logistic`` or ``perceptron``.
    """

    def __init__(
        self, classifier: nn.Module, pool: Callable[[torch.Tensor], torch.Tensor], labels: Sequence[str], kind: str
    ) -> None:
        self.labels = tuple(labels)
        self.kind = kind
        self._classifier = classifier
        self._pool = pool

    def predict(self, states: Sequence[torch.Tensor]) -> list[str]:
        """The label of each text.

        Args:
            states: released states of each, [T, D].
        """
        pooled = torch.stack([self._pool(rows) for rows in states])  # [S, D]
        with torch.no_grad():
            return [self.labels[best] for best in self._classifier(pooled).argmax(-1).tolist()]


def fit_attribute(
    states: Sequence[torch.Tensor], labels: Sequence[str], seed: int = 0, device: str = "cpu"
) -> AttributeReader:
    """Train a logistic regression and a perceptron with one hidden layer, and keep the better on held-back texts.

    Classes weigh the same however common they are.

    Args:
        states: released states of each text, [T, D].
        labels: one per text.
        seed: of the split, weights and order.
        device: where to train.

    Raises:
        InputError: numbers differ, or a label has fewer than two texts, or there is one label only.
    """
    names = sorted(set(labels))
    scarce = [name for name in names if labels.count(name) < 2]
    if len(states) != len(labels) or len(names) < 2 or scarce:
        raise InputError(
            f"{len(states)} texts and {len(labels)} labels of {len(names)} kinds, {len(scarce)} of them with a single text: "
            "an attribute needs one label per text, two kinds at least, and two texts of each"
        )
    standard = Standard(torch.cat(list(states)).float().to(device))

    def pool(rows: torch.Tensor) -> torch.Tensor:
        return standard(rows.float()).mean(0)

    pooled = torch.stack([pool(rows) for rows in states])  # [S, D]
    classes = torch.tensor([names.index(label) for label in labels], device=device)  # [S]
    weight = len(classes) / torch.bincount(classes).float()  # [C]
    # averaging shrinks what the positions do not share; bring the features back to unit size
    size = pooled.std(0).clamp_min(1e-6)
    with seeded(seed, device):
        split = _stratified(classes)
        candidates: dict[str, nn.Module] = {
            "logistic": nn.Linear(pooled.shape[-1], len(names)),
            "perceptron": nn.Sequential(
                nn.Linear(pooled.shape[-1], _HIDDEN), nn.ReLU(), nn.Dropout(0.2), nn.Linear(_HIDDEN, len(names))
            ),
        }
        losses = {
            name: _train(module.to(device), pooled / size, classes, weight, split)
            for name, module in candidates.items()
        }
    best = min(losses, key=lambda name: losses[name])
    return AttributeReader(candidates[best], lambda rows: pool(rows) / size, names, best)


def _train(module: nn.Module, inputs: torch.Tensor, classes: torch.Tensor, weight: torch.Tensor, split: Split) -> float:
    """Train one classifier; its lowest held-back loss."""

    def loss(texts: torch.Tensor) -> torch.Tensor:
        return cross_entropy(module(inputs[texts]), classes[texts], weight)

    lowest = fit(module, loss, split, _RECIPE)
    if lowest is None:
        raise InputError("no texts were held back")
    return lowest


def _stratified(classes: torch.Tensor) -> Split:
    """Hold back a share of every class, at least one text."""
    train, held = [], []
    for label in range(int(classes.max()) + 1):
        members = torch.nonzero(classes.cpu() == label).flatten()
        members = members[torch.randperm(len(members))]
        kept = max(1, round(_HELD_SHARE * len(members)))
        held.append(members[:kept])
        train.append(members[kept:])
    return Split(torch.cat(train), torch.cat(held))
