"""Every tensor of a checkpoint and the part it plays: reader, writer, norm.

A *reader* consumes the normalised residual stream, a *writer* adds to it. Unknown tensors are refused: one that was passed
through would be wrong, and would show the base.

Notation: V vocabulary, d hidden size, m query heads, n key-value heads, c dimension of a head, f inner channels of an FFN.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from cutlayer.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedConfig

    from cutlayer.models.checkpoint import TensorHeader
    from cutlayer.obfuscation.families import Family


class Role(Enum):
    """What a tensor does."""

    EMBEDDING = auto()
    OUTPUT_HEAD = auto()
    NORM = auto()
    """Before readers; its weight is folded into them."""
    BRANCH_NORM = auto()
    """Between a writer and the stream."""
    QUERY = auto()
    KEY = auto()
    VALUE = auto()
    OUTPUT = auto()
    QUERY_NORM = auto()
    KEY_NORM = auto()
    GATE = auto()
    UP = auto()
    DOWN = auto()
    ROUTER = auto()
    ZERO_BIAS = auto()
    """Of a writer; the base has none, but the architecture of the export wants one."""


WRITERS: Final = frozenset({Role.EMBEDDING, Role.OUTPUT, Role.DOWN})

EMBEDDING: Final = "model.embed_tokens.weight"
OUTPUT_HEAD: Final = "lm_head.weight"
FINAL_NORM: Final = "model.norm.weight"


class Place(NamedTuple):
    """One tensor of the export.

    Args:
        name: in the export; ``{}`` stands for the number of the expert.
        role: what it does.
        label: of the secrets that belong to it, e.g. ``L3/q``; a bias shares that of its weight.
        source: its name in the base; ``{}`` as in `name`.
        bias: whether it is a bias, a vector.
        layer: it belongs to.
        expert: its number in the export.
        norm: name of the norm whose weight a reader takes over; empty for others.
    """

    name: str
    role: Role
    label: str
    source: str
    bias: bool = False
    layer: int = -1
    expert: int | None = None
    norm: str = ""

    @property
    def exported(self) -> str:
        """Its name in the export."""
        return self.name.format(self.expert)


def layout(
    config: PreTrainedConfig, family: Family, headers: dict[str, TensorHeader], *, output_bias: bool
) -> tuple[Place, ...]:
    """All tensors of the export, in the order in which they are made.

    Args:
        config: of the base.
        family: of the base.
        headers: names and shapes of the base's tensors.
        output_bias: give every attention layer a zero output bias where the base has none.

    Raises:
        WeightsError: the base lacks a tensor, has one that is unknown, or of another shape than its config says.
    """
    places = tuple(_places(config, family, headers, output_bias))
    shapes = {
        place.source.format(place.expert): plain_shape(place, config)
        for place in places
        if place.role is not Role.ZERO_BIAS
    }
    # Left in old checkpoints; engines compute these frequencies themselves.
    names = {name for name in headers if not name.endswith("rotary_emb.inv_freq")}
    if config.tie_word_embeddings:
        names.discard(OUTPUT_HEAD)  # some store a tied head all the same
    missing, unknown = sorted(set(shapes) - names), sorted(names - set(shapes))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}, which {config.model_type} does not have here"
        raise WeightsError(f"the checkpoint does not fit its config.json: it {what}")
    for name, shape in shapes.items():
        if headers[name].shape != shape:
            raise WeightsError(f"{name} has shape {headers[name].shape}; config.json says {shape}")
    return places


def plain_shape(place: Place, config: PreTrainedConfig) -> tuple[int, ...]:
    """Shape of a tensor in the base."""
    d, c = config.hidden_size, head_dim(config)
    width = {
        Role.QUERY: config.num_attention_heads * c,
        Role.KEY: config.num_key_value_heads * c,
        Role.VALUE: config.num_key_value_heads * c,
        Role.OUTPUT: config.num_attention_heads * c,
        Role.QUERY_NORM: c,
        Role.KEY_NORM: c,
        Role.EMBEDDING: config.vocab_size,
        Role.OUTPUT_HEAD: config.vocab_size,
        Role.NORM: d,
        Role.BRANCH_NORM: d,
        Role.ZERO_BIAS: d,
        Role.ROUTER: expert_count(config),
    }.get(place.role, ffn_width(config, place.expert))
    if place.role in (Role.NORM, Role.BRANCH_NORM, Role.QUERY_NORM, Role.KEY_NORM):
        return (width,)
    if place.bias:
        return (d if place.role in WRITERS else width,)
    return (d, width) if place.role in (Role.OUTPUT, Role.DOWN) else (width, d)


def head_dim(config: PreTrainedConfig) -> int:
    """c."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def expert_count(config: PreTrainedConfig) -> int:
    """Experts of each mixture; 0 where there are none."""
    return int(getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 0)


def ffn_width(config: PreTrainedConfig, expert: int | None) -> int:
    """f, of one expert if one is given."""
    if expert is not None and getattr(config, "moe_intermediate_size", None):
        return int(config.moe_intermediate_size)
    return int(config.intermediate_size)


def ffn_label(layer: int, expert: int | None) -> str:
    """Of the secrets of one feed-forward block, e.g. ``L3`` or ``L3/E5``."""
    return f"L{layer}" if expert is None else f"L{layer}/E{expert}"


def _places(
    config: PreTrainedConfig, family: Family, headers: dict[str, TensorHeader], output_bias: bool
) -> Iterator[Place]:
    yield Place(EMBEDDING, Role.EMBEDDING, "embedding", EMBEDDING)
    for layer in range(config.num_hidden_layers):
        yield from _attention(layer, family, headers, output_bias)
        yield from _feed_forward(layer, config, family, headers)
    yield Place(FINAL_NORM, Role.NORM, "norm", FINAL_NORM)
    source = EMBEDDING if config.tie_word_embeddings else OUTPUT_HEAD
    yield Place(OUTPUT_HEAD, Role.OUTPUT_HEAD, "head", source, norm=FINAL_NORM)


def _attention(layer: int, family: Family, headers: dict[str, TensorHeader], output_bias: bool) -> Iterator[Place]:
    prefix = f"model.layers.{layer}."
    norm = f"{prefix}input_layernorm.weight"
    yield Place(norm, Role.NORM, f"L{layer}/norm", norm, layer=layer)
    for role, short in ((Role.QUERY, "q"), (Role.KEY, "k"), (Role.VALUE, "v"), (Role.OUTPUT, "o")):
        name, label = f"{prefix}self_attn.{short}_proj", f"L{layer}/{short}"
        folded = "" if role is Role.OUTPUT else norm
        yield Place(f"{name}.weight", role, label, f"{name}.weight", layer=layer, norm=folded)
        if f"{name}.bias" in headers:
            yield Place(f"{name}.bias", role, label, f"{name}.bias", bias=True, layer=layer)
        elif role is Role.OUTPUT and output_bias:
            yield Place(f"{name}.bias", Role.ZERO_BIAS, label, "", bias=True, layer=layer)
    if family.head_norms:
        for role, short in ((Role.QUERY_NORM, "q"), (Role.KEY_NORM, "k")):
            name = f"{prefix}self_attn.{short}_norm.weight"
            yield Place(name, role, f"L{layer}/{short}_norm", name, layer=layer)
    if family.branch_norms:
        for short in ("attention", "feedforward"):
            name = f"{prefix}post_{short}_layernorm.weight"
            yield Place(name, Role.BRANCH_NORM, f"L{layer}/post_{short}", name, layer=layer)


def _feed_forward(
    layer: int, config: PreTrainedConfig, family: Family, headers: dict[str, TensorHeader]
) -> Iterator[Place]:
    prefix = f"model.layers.{layer}."
    norm = f"{prefix}{'pre_feedforward' if family.branch_norms else 'post_attention'}_layernorm.weight"
    yield Place(norm, Role.NORM, f"L{layer}/ffn_norm", norm, layer=layer)
    if family.expert and f"{prefix}{family.expert.router}.weight" in headers:
        router = f"{prefix}{family.expert.router}.weight"
        yield Place(router, Role.ROUTER, f"L{layer}/router", router, layer=layer, norm=norm)
        names = family.expert[1:]
        experts: tuple[int | None, ...] = tuple(range(expert_count(config)))
    else:
        names, experts = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"), (None,)
    for expert in experts:
        for role, short in zip((Role.GATE, Role.UP, Role.DOWN), names, strict=True):
            name = f"{prefix}{short}"
            label = f"{ffn_label(layer, expert)}/{role.name.lower()}"
            folded = "" if role is Role.DOWN else norm
            yield Place(f"{name}.weight", role, label, f"{name}.weight", layer=layer, expert=expert, norm=folded)
            if f"{name}.bias" in headers:
                yield Place(f"{name}.bias", role, label, f"{name}.bias", bias=True, layer=layer, expert=expert)
