"""From a tensor of the base to the tensor of the export that stands in its place.

    embedding  Ẽ[τ(i)] = (E[i] + α_e·σ_E·noise)·P̂        head  H̃[τ(i)] = ((H[i] + α_h·σ_H·noise) ∘ w)·Q̂ᵀ
    reader     W̃ = T(W·diag(w))·Q̂ᵀ                        writer  W̃ = (T(Wᵀ)·P̂)ᵀ
    bias       b̃ = T(b), of a writer bP̂                   norm  κ

with w the weight of the norm before the reader and T the row map of the layer's keys. Only one tensor is in memory at a time,
and it is worked on in blocks of rows, so the copies in a wider type stay small. float32 exports are computed in float64, 16-bit
ones in float32, whose rounding is far below theirs.

Notation: V vocabulary, d hidden size of the base, D of the export, F rows of a reader or of a writer's transpose.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import torch

from cutlayer.errors import UnsupportedModelError, WeightsError
from cutlayer.obfuscation.algorithm1 import Algorithm1
from cutlayer.obfuscation.attention_keys import AttentionKeys, Heads, draw_attention_keys
from cutlayer.obfuscation.ffn_keys import FfnKeys, draw_expert_order, draw_ffn_keys
from cutlayer.obfuscation.frequency_pairs import frequencies
from cutlayer.obfuscation.hidden_keys import Isometric, Monomial
from cutlayer.obfuscation.layout import (
    WRITERS,
    Place,
    Role,
    expert_count,
    ffn_label,
    ffn_width,
    head_dim,
    layout,
    plain_shape,
)
from cutlayer.obfuscation.row_map import RowMap
from cutlayer.obfuscation.stream import Stream

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from cutlayer.models.checkpoint import Checkpoint
    from cutlayer.obfuscation.families import Family
    from cutlayer.obfuscation.hidden_keys import HiddenKey
    from cutlayer.obfuscation.keys import OwnerKey

_VALUES_AT_ONCE: Final = 1 << 19


class Transform:
    """The transformation of one base under one key.

    Args:
        base: its tensors.
        config: its configuration.
        family: its family.
        key: the owner's.

    Raises:
        WeightsError: the checkpoint does not fit its configuration.
    """

    def __init__(self, base: Checkpoint, config: PreTrainedConfig, family: Family, key: OwnerKey) -> None:
        self._base, self._config, self._family = base, config, family
        self._seed, self._settings = key.seed, key.settings
        self._tau = torch.from_numpy(key.tau().astype("int64"))  # [V]
        self._hidden = self._draw_hidden_key()
        self._dtype: torch.dtype = getattr(torch, key.settings.dtype)
        self._work = torch.float64 if self._dtype is torch.float32 else torch.float32
        becomes_llama = config.model_type == "qwen2" and key.settings.hidden_size != config.hidden_size
        self.places: Final = layout(config, family, base.headers(), output_bias=becomes_llama)
        """Every tensor of the export, in the order in which they are best made."""
        # Tensors that share keys follow each other.
        self._attention = lru_cache(maxsize=1)(self._draw_attention)
        self._ffn = lru_cache(maxsize=1)(self._draw_ffn)
        self._expert_order = lru_cache(maxsize=1)(self._draw_expert_order)

    @property
    def kappa(self) -> float:
        """κ, by which lengths of the stream change as an RMSNorm sees them; its ε has to follow by κ²."""
        return self._hidden.kappa

    def shape(self, place: Place) -> tuple[int, ...]:
        """Shape of a tensor of the export."""
        wide = self._settings.hidden_size
        plain = plain_shape(place, self._config)
        if place.role in (Role.QUERY_NORM, Role.KEY_NORM) or (
            place.bias and place.role not in WRITERS | {Role.ZERO_BIAS}
        ):
            return plain
        if len(plain) == 1:
            return (wide,)
        return (wide, plain[1]) if place.role in (Role.OUTPUT, Role.DOWN) else (plain[0], wide)

    @torch.inference_mode()
    def make(self, place: Place) -> torch.Tensor:
        """One tensor of the export.

        Raises:
            WeightsError: it cannot be read, or a value is not finite or too large for the export's dtype.
        """
        match place.role:
            case Role.EMBEDDING:
                # Gemma multiplies embeddings by √(hidden size), which here is D and not d.
                gain = math.sqrt(self._config.hidden_size / self._settings.hidden_size)
                return self._rows_of_tokens(
                    place, self._settings.alpha_e, "embed-noise", gain if self._family.scaled_embedding else 1.0
                )
            case Role.OUTPUT_HEAD:
                return self._rows_of_tokens(place, self._settings.alpha_h, "head-noise", self._folded(place))
            case Role.NORM:
                return self._stored_norm(torch.full(self.shape(place), self.kappa, dtype=torch.float64), place)
            case Role.BRANCH_NORM:
                if not isinstance(self._hidden, Monomial):
                    raise UnsupportedModelError(f"{place.source} only commutes with the keys of mode 'monomial'")
                return self._stored_norm(self._norm_weight(self._source(place))[self._hidden.order], place)
            case Role.QUERY_NORM | Role.KEY_NORM:
                return self._stored_norm(self._row_map(place).whole(self._norm_weight(self._source(place))), place)
            case Role.ZERO_BIAS:
                return torch.zeros(self.shape(place), dtype=self._dtype)
            case _ if place.bias:
                return self._bias(place)
            case _ if place.role in WRITERS:
                return self._writer(place)
            case _:
                return self._reader(place)

    def _rows_of_tokens(self, place: Place, alpha: float, noise_label: str, gain: torch.Tensor | float) -> torch.Tensor:
        """Embedding or output head: noise, hidden key, and rows moved to the ids the server knows, [V, D]."""
        source = self._source(place)  # [V, d]
        deviation = alpha * _standard_deviation(source, self._at_once) if alpha else 0.0
        noise = Stream(self._seed, noise_label)
        key = self._hidden.writer if place.role is Role.EMBEDDING else self._hidden.reader
        apply = key(place.label, self._work)
        made = torch.empty(self.shape(place), dtype=self._dtype)
        for piece in RowMap.identity(len(source)).pieces(self._at_once):
            rows = source[piece].to(self._work)  # [rows, d]
            if alpha:
                rows = rows + (deviation * noise.normal(*rows.shape)).to(self._work)
            made[self._tau[piece]] = self._stored(apply(rows * gain), place)
        return made

    def _reader(self, place: Place) -> torch.Tensor:
        """[F, d] → [F, D]."""
        source, norm, rows = self._source(place), self._folded(place), self._row_map(place)
        apply = self._hidden.reader(place.label, self._work)
        made = torch.empty(self.shape(place), dtype=self._dtype)
        for piece in rows.pieces(self._at_once):
            made[piece] = self._stored(apply(rows(source, piece, self._work) * norm), place)
        return made

    def _writer(self, place: Place) -> torch.Tensor:
        """[d, F] → [D, F]."""
        source, rows = self._source(place).T, self._row_map(place)
        apply = self._hidden.writer(place.label, self._work)
        made = torch.empty(self.shape(place), dtype=self._dtype)
        for piece in rows.pieces(self._at_once):
            made[:, piece] = self._stored(apply(rows(source, piece, self._work)), place).T
        return made

    def _bias(self, place: Place) -> torch.Tensor:
        source = self._source(place).double()
        if place.role in WRITERS:
            made = self._hidden.writer(place.label, torch.float64)(source[None])[0]
        else:
            made = self._row_map(place).whole(source)
        return self._stored(made, place)

    def _row_map(self, place: Place) -> RowMap:
        match place.role:
            case Role.ROUTER:
                return self._expert_order(place.layer)
            case Role.GATE | Role.UP | Role.DOWN:
                found: RowMap = getattr(self._ffn(place.layer, place.expert), place.role.name.lower())
            case _:
                found = getattr(self._attention(place.layer), place.role.name.lower())
        return found

    def _source(self, place: Place) -> torch.Tensor:
        """The base's tensor; an expert's is that of the expert which takes this number."""
        expert = None if place.expert is None else int(self._expert_order(place.layer).order[place.expert])
        return self._base.read(place.source.format(expert))

    def _folded(self, place: Place) -> torch.Tensor:
        """Weight of the norm before a reader, [d]."""
        return self._norm_weight(self._base.read(place.norm)).to(self._work)

    def _norm_weight(self, stored: torch.Tensor) -> torch.Tensor:
        return stored.double() + float(self._family.zero_centred)

    def _stored_norm(self, weight: torch.Tensor, place: Place) -> torch.Tensor:
        return self._stored(weight - float(self._family.zero_centred), place)

    def _stored(self, values: torch.Tensor, place: Place) -> torch.Tensor:
        """In the export's dtype, checked."""
        stored = values.to(self._dtype)
        # One sum finds NaN, infinity, and infinities that cancel.
        if not math.isfinite(float(stored.sum(dtype=torch.float64))):
            raise WeightsError(
                f"{place.exported} holds values that are not finite in {self._settings.dtype}; "
                "check the base for NaN, or choose --dtype float32 or bfloat16"
            )
        return stored

    @property
    def _at_once(self) -> int:
        """Rows of a block."""
        return max(1, _VALUES_AT_ONCE // self._settings.hidden_size)

    def _draw_hidden_key(self) -> HiddenKey:
        d, settings = self._config.hidden_size, self._settings
        if "hidden" not in settings.components:
            return Monomial.identity(d)
        if settings.mode == "monomial":
            return Monomial.draw(self._seed, d)
        if settings.mode == "paper":
            return Algorithm1(self._seed, d, settings.hidden_size, settings.lam, per_writer=settings.per_writer_keys)
        return Isometric(self._seed, d, settings.hidden_size)

    def _draw_attention(self, layer: int) -> AttentionKeys:
        c, n = head_dim(self._config), self._config.num_key_value_heads
        zeta = frequencies(self._config, c) if self._settings.mode == "paper" else None
        heads = Heads(n, self._config.num_attention_heads // n, c, self._family.head_norms, zeta)
        return draw_attention_keys(self._seed, layer, heads, self._settings)

    def _draw_ffn(self, layer: int, expert: int | None) -> FfnKeys:
        return draw_ffn_keys(self._seed, ffn_label(layer, expert), ffn_width(self._config, expert), self._settings)

    def _draw_expert_order(self, layer: int) -> RowMap:
        return draw_expert_order(self._seed, layer, expert_count(self._config), self._settings)


def _standard_deviation(matrix: torch.Tensor, at_once: int) -> float:
    """Of all entries, block by block."""
    total = squares = 0.0
    for piece in RowMap.identity(len(matrix)).pieces(at_once):
        values = matrix[piece].double()
        total += float(values.sum())
        squares += float(values.square().sum())
    mean = total / matrix.numel()
    return math.sqrt(max(0.0, squares / matrix.numel() - mean * mean))
