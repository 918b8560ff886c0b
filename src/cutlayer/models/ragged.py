"""One forward of the body over chunks of many sessions, each with its own length and its own past.

    body = RaggedBody(load_body(...), PagePool(...))
    outputs = body([Chunk(table, hidden), ...])      # list of [T, D], one per chunk

All rows go through the linear layers together, as one sequence of ΣT positions: reading the weights is what a decode step
costs, and it is paid once for all. Attention alone tells sessions apart. It runs as one of transformers' attention functions,
so a family's projections, rotary embeddings, norms, soft-caps and windows stay transformers' code.

Notation: ΣT rows of all chunks, T of one, S positions of one session, H query heads, K key/value heads, G = H/K, d head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface

from cutlayer.models.visibility import positions, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.models.pages import PagePool, PageTable
    from cutlayer.models.parts import Body
    from cutlayer.tree import Tree

ATTENTION: Final = "cutlayer_ragged"


class Chunk(NamedTuple):
    """The next positions of one session, for which its table has room."""

    table: PageTable
    hidden: torch.Tensor
    """[T, D]"""
    backs: Sequence[int] = ()
    """[T] as in `Tree.extend`; none for a chain."""


class _Span(NamedTuple):
    """A chunk's place: rows [start, stop) of the batch attend to the slots in `runs`, S in all."""

    start: int
    stop: int
    runs: list[range]
    tree: Tree
    past: int
    """Slots before the chunk's first."""

    @property
    def single(self) -> bool:
        """Whether it is one row that sees everything held."""
        return self.stop - self.start == 1 and self.tree.trunk == self.past + 1


class _Batch:
    """Where the rows of one forward, which the tables hold already, go and what they see; the same for all layers."""

    def __init__(self, pool: PagePool, chunks: Sequence[Chunk], device: torch.device) -> None:
        self.pool = pool
        self.spans: list[_Span] = []
        slots: list[int] = []
        places: list[int] = []
        for table, hidden, _ in chunks:
            end = table.position
            past = end - len(hidden)
            self.spans.append(_Span(len(slots), len(slots) + len(hidden), table.runs(end), table.tree, past))
            slots += table.slots(past, end)
            places += positions(table.tree, past)
        self.slots = torch.tensor(slots, device=device)  # [ΣT]
        self.positions = torch.tensor([places], device=device)  # [1, ΣT]
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def mask(self, span: _Span, window: int | None) -> torch.Tensor:
        """Which of S positions each of T rows may see, bool [T, S]."""
        key = span.start, window
        if key not in self._masks:
            self._masks[key] = visible(span.tree, span.past, window, self.slots.device)
        return self._masks[key]


class RaggedBody(nn.Module):
    """A body that runs many sessions at once. The body given is changed and must not be used alone any more.

    Args:
        body: filled, on its device.
        pool: where keys and values are kept; of as many layers as the body.
    """

    def __init__(self, body: Body, pool: PagePool) -> None:
        super().__init__()
        self.pool = pool
        self._base = body.shell.base_model
        for module in self._base.modules():
            if hasattr(module, "config"):
                module.config._attn_implementation = ATTENTION

    def forward(self, chunks: Sequence[Chunk]) -> list[torch.Tensor]:
        """Run all chunks and lengthen their tables.

        Args:
            chunks: at least one, of different sessions.

        Returns:
            Hidden states [T, D] of each.
        """
        hidden = torch.cat([chunk.hidden for chunk in chunks]).unsqueeze(0)  # [1, ΣT, D]
        before = [chunk.table.position for chunk in chunks]
        try:
            for table, rows, backs in chunks:
                table.tree.extend(len(rows), backs)
            batch = _Batch(self.pool, chunks, hidden.device)
            output = self._base(inputs_embeds=hidden, position_ids=batch.positions, use_cache=False, ragged=batch)
        except BaseException:
            for chunk, position in zip(chunks, before, strict=True):
                chunk.table.tree.rollback(position)
            raise
        return list(output.last_hidden_state[0].split([len(chunk.hidden) for chunk in chunks]))


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    ragged: _Batch,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' signature. Query [1, H, ΣT, d], key and value [1, K, ΣT, d] → [1, ΣT, H, d]."""
    layer: int = module.layer_idx  # type: ignore[assignment]
    ragged.pool.write(layer, ragged.slots, key[0].transpose(0, 1), value[0].transpose(0, 1))
    output = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])  # [ΣT, H, d]
    for span in ragged.spans:
        keys, values = ragged.pool.read(layer, span.runs)  # [S, K, d]
        rows = query[0, :, span.start : span.stop]  # [H, T, d]
        if span.single:
            if sliding_window is not None:
                keys, values = keys[-sliding_window:], values[-sliding_window:]
            # The heads that share keys become rows of one small product, so keys are not copied for each.
            grouped = rows.view(keys.shape[1], -1, rows.shape[-1])  # [K, G, d]
            found = _attention(
                grouped, keys.transpose(0, 1), values.transpose(0, 1), None, scaling, softcap
            )  # [K, G, d]
            output[span.start] = found.reshape(rows.shape[0], -1)
        else:
            mask = ragged.mask(span, sliding_window)
            found = _attention(rows, keys.transpose(0, 1), values.transpose(0, 1), mask, scaling, softcap)  # [H, T, d]
            output[span.start : span.stop] = found.transpose(0, 1)
    return output.unsqueeze(0), None


def _attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Query [H, T, d], keys and values [K, S, d], mask [T, S] → [H, T, d]."""
    if softcap is None:
        return F.scaled_dot_product_attention(
            query[None], keys[None], values[None], attn_mask=mask, scale=scaling, enable_gqa=len(query) != len(keys)
        )[0]
    # No fused kernel caps scores on every device.
    groups = len(query) // len(keys)
    keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)  # [H, S, d]
    scores = query @ keys.transpose(1, 2) * (scaling if scaling is not None else query.shape[-1] ** -0.5)  # [H, T, S]
    scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values


AttentionInterface.register(ATTENTION, _attend)
