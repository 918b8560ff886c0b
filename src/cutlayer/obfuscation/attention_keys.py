"""Keys of one attention layer: what queries, keys, values and the output projection are multiplied by on the side of the heads.

    q̃ = (R H Z_b)ᵀq,  k̃ = (R H⁻¹ Z_b)ᵀk,  ṽ = Uᵀv,  õ = U⁻¹o,  then the same permutation of heads on all of them

R turns each rotary pair by a secret angle, H scales pairs up in q and down in k, Z_b reorders pairs (`paper` mode), U is any
invertible matrix. R, H, Z_b and U belong to a group of query heads and their shared key-value head.

Where a norm stands between projection and rotation (qwen3, gemma3), angles would not commute with its weights: R is then a sign
per pair and head; H and Z_b are one per layer and live in the norm's own weights, where who has the base can see H.

Source: Lin et al. 2026 (arXiv 2603.01499), §5.2.3 and Algorithm 2.

Deviations:
    The paper prints Z_bᵀ on keys and Z_b on queries; scores are kept only with the same Z_b on both.
    The paper draws U from N(0, 1/c), which is badly conditioned; here it is O₁·diag(s)·O₂ with s in [1/1.5, 1.5].
    The range of H is not given; it is [1/1.5, 1.5], uniform in the logarithm.

Notation: n key-value heads, r query heads per key-value head, m = n·r, c dimension of a head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from cutlayer.obfuscation.frequency_pairs import both_halves, windowed_permutation
from cutlayer.obfuscation.row_map import RowMap
from cutlayer.obfuscation.stream import Stream

if TYPE_CHECKING:
    from cutlayer.obfuscation.settings import Settings
    from cutlayer.types import Secret

LARGEST_SCALE = 1.5
"""Of H and of the singular values of U. Up to 4 is still exact in float32; more would cost 16-bit exports precision."""


class Heads(NamedTuple):
    """Shape of the attention of a model.

    Args:
        kv: n.
        ratio: r.
        dim: c.
        normed: a norm stands between the projection of queries and keys and their rotation.
        zeta: rotary frequencies, [c/2]; None where nothing reorders them.
    """

    kv: int
    ratio: int
    dim: int
    normed: bool
    zeta: torch.Tensor | None


class AttentionKeys(NamedTuple):
    """Row maps of one layer; `output` acts on the rows of the transposed output projection, the norms' on their weights."""

    query: RowMap
    key: RowMap
    value: RowMap
    output: RowMap
    query_norm: RowMap
    key_norm: RowMap


def draw_attention_keys(seed: Secret, layer: int, heads: Heads, settings: Settings) -> AttentionKeys:
    """The keys of layer `layer`."""
    n, r, c = heads.kv, heads.ratio, heads.dim
    kv_order, query_order = _head_orders(Stream(seed, f"L{layer}/heads"), n, r, settings)
    group = kv_order.repeat_interleave(r)  # the key-value head of each query head, [m]
    rotary = Stream(seed, f"L{layer}/rotary")
    drawn = _with_norm(rotary, heads, settings) if heads.normed else _without_norm(rotary, heads, settings)
    query, key, query_norm, key_norm = drawn  # [n, c, c] twice, for plain heads
    u, inverse = _values(Stream(seed, f"L{layer}/values"), n, c, settings)  # [n, c, c]
    kv_rows, query_rows = _rows(kv_order, c), _rows(query_order, c)
    return AttentionKeys(
        query=RowMap(query_rows, query[group]),
        key=RowMap(kv_rows, key[kv_order]),
        value=RowMap(kv_rows, u.mT[kv_order]),
        output=RowMap(query_rows, inverse[group]),
        query_norm=query_norm,
        key_norm=key_norm,
    )


def _head_orders(stream: Stream, n: int, r: int, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Source head of each key-value head, [n], and of each query head, [m]."""
    if "heads" not in settings.components:
        return torch.arange(n), torch.arange(n * r)
    kv = stream.permutation(n)
    return kv, torch.cat([head * r + stream.permutation(r) for head in kv.tolist()])


def _rows(order: torch.Tensor, c: int) -> torch.Tensor:
    """Source row of each row, from the source of each head."""
    return (order[:, None] * c + torch.arange(c)).flatten()


def _without_norm(
    stream: Stream, heads: Heads, settings: Settings
) -> tuple[torch.Tensor, torch.Tensor, RowMap, RowMap]:
    """(R H Z_b)ᵀ and (R H⁻¹ Z_b)ᵀ of each group, [n, c, c]; the layer has no norms to change."""
    n, c = heads.kv, heads.dim
    query = torch.eye(c, dtype=torch.float64).repeat(n, 1, 1)
    key = query.clone()
    if "rotary" in settings.components:
        for head in range(n):
            angle = 2 * math.pi * stream.uniform(c // 2)
            scale = both_halves(stream.scales(c // 2, LARGEST_SCALE))[:, None]  # [c, 1]
            order = both_halves_order(_pair_order(stream, heads, settings))
            turned = _rotation(angle).T  # Rᵀ, [c, c]
            query[head] = (scale * turned)[order]
            key[head] = (turned / scale)[order]
    return query, key, RowMap.identity(c), RowMap.identity(c)


def _with_norm(stream: Stream, heads: Heads, settings: Settings) -> tuple[torch.Tensor, torch.Tensor, RowMap, RowMap]:
    """Signs and Z_b of each group, [n, c, c], the same for queries and keys; Z_b and H of the norms' weights."""
    n, c = heads.kv, heads.dim
    mix = torch.eye(c, dtype=torch.float64).repeat(n, 1, 1)
    if "rotary" not in settings.components:
        return mix, mix, RowMap.identity(c), RowMap.identity(c)
    scale = both_halves(stream.scales(c // 2, LARGEST_SCALE))  # [c]
    order = both_halves_order(_pair_order(stream, heads, settings))
    for head in range(n):
        mix[head] = (both_halves(stream.signs(c // 2))[:, None] * mix[head])[order]
    return mix, mix, RowMap(order, scale=scale[order]), RowMap(order, scale=1 / scale[order])


def _values(stream: Stream, n: int, c: int, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """U and U⁻¹ of each group, [n, c, c]."""
    if "values" not in settings.components:
        same = torch.eye(c, dtype=torch.float64).repeat(n, 1, 1)
        return same, same
    u, inverse = [], []
    for _ in range(n):
        left, right, scale = stream.orthogonal(c), stream.orthogonal(c), stream.scales(c, LARGEST_SCALE)
        u.append(left * scale @ right)
        inverse.append(right.T / scale @ left.T)
    return torch.stack(u), torch.stack(inverse)


def _pair_order(stream: Stream, heads: Heads, settings: Settings) -> torch.Tensor:
    """Source pair of each pair, [c/2]."""
    if heads.zeta is None:
        return torch.arange(heads.dim // 2)
    return windowed_permutation(stream, heads.zeta, settings.beta, settings.gamma)


def both_halves_order(pairs: torch.Tensor) -> torch.Tensor:
    """An order of pairs, [c/2], as an order of channels, [c]."""
    return torch.cat((pairs, pairs + len(pairs)))


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    """R, which turns pair (j, j + c/2) by `angle[j]`, [c, c]."""
    cos, sin = torch.diag(angle.cos()), torch.diag(angle.sin())
    return torch.cat((torch.cat((cos, -sin), 1), torch.cat((sin, cos), 1)))
