"""What an export is made with. It is written into the owner's key, and nowhere in the export.

Notation: V vocabulary, d hidden size of the base, D of the export.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final, Literal, get_args

import msgspec

from cutlayer.errors import InputError, UnsupportedModelError
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.obfuscation.families import Mode, check_mode, family_of
from cutlayer.types import DtypeName, check_dtype

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from transformers import PreTrainedConfig

    from cutlayer.models.checkpoint import TensorHeader

Component = Literal["vocabulary", "hidden", "rotary", "values", "heads", "ffn", "experts"]
COMPONENTS: Final[tuple[Component, ...]] = get_args(Component)

PAPER_ALPHA: Final = (1.0, 0.2)
PAPER_LAMBDA: Final = 0.3
PAPER_BETA: Final = 8
PAPER_GAMMA: Final = 1e3
PAPER_EXTRA: Final = 256
"""2h with the paper's h = 128."""

# (parameters up to, α_e, α_h). At (1.0, 0.2) a model of 135 million parameters answers nonsense; larger noise than the last
# line's is for whoever has evaluated it on their model.
NOISY_PRESETS: Final = ((1e9, 0.02, 0.01), (math.inf, 0.05, 0.02))

_WIDTH_STEP: Final = 32
"""Expanded hidden sizes chosen here are multiples of it, which block quantisation of 32 values needs."""

_FILE_DTYPES: Final[dict[str, DtypeName]] = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}

_Noise = Annotated[float, msgspec.Meta(ge=0, le=100)]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of one export.

    Args:
        mode: which keys, see `cutlayer.obfuscation.card`.
        hidden_size: D.
        dtype: of the export.
        alpha_e: α_e, standard deviation of the noise on the embedding over that of the embedding.
        alpha_h: α_h, the same of the output head.
        lam: λ, `paper` only.
        beta: β, `paper` only: widest window of rotary pairs that are permuted.
        gamma: γ, `paper` only: how strongly unequal frequencies keep windows narrow.
        per_writer_keys: `paper` only: a fresh P̂ for every writer.
        components: which secrets are applied; all but in experiments.
    """

    mode: Mode
    hidden_size: Annotated[int, msgspec.Meta(ge=1)]
    dtype: DtypeName
    alpha_e: _Noise = 0.0
    alpha_h: _Noise = 0.0
    lam: Annotated[float, msgspec.Meta(ge=0, le=10)] = 0.0
    beta: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    gamma: Annotated[float, msgspec.Meta(ge=0, le=1e9)] = 0.0
    per_writer_keys: bool = False
    components: tuple[Component, ...] = COMPONENTS


def choose(
    base: Path,
    *,
    mode: str = "exact",
    expand: int | None = None,
    dtype: str | None = None,
    alpha_e: float | None = None,
    alpha_h: float | None = None,
    lam: float | None = None,
    beta: int | None = None,
    gamma: float | None = None,
    per_writer_keys: bool = False,
    components: tuple[Component, ...] = COMPONENTS,
) -> Settings:
    """Settings for the model in `base`; what is None takes the mode's preset.

    Args:
        base: model directory.
        mode: exact, noisy, paper or monomial.
        expand: D; must be a multiple of the number of query heads.
        dtype: of the export; by default that of the base.
        alpha_e: `noisy` and `paper`.
        alpha_h: `noisy` and `paper`.
        lam: `paper`.
        beta: `paper`.
        gamma: `paper`.
        per_writer_keys: `paper`.
        components: which secrets are applied; D is d without "hidden".

    Raises:
        InputError: an option has no meaning in this mode or is out of range.
        UnsupportedModelError: the model, or its mode, is not supported.
        ModelNotFoundError, WeightsError: the model cannot be read.
    """
    config, family = family_of(base)
    known = check_mode(config.model_type, family, mode)
    headers = Checkpoint(base).headers()
    noise, paper = known in ("noisy", "paper"), known == "paper"
    _refuse_elsewhere(mode, "noisy or paper", noise, {"--alpha-e": alpha_e, "--alpha-h": alpha_h})
    only_paper = {"--lambda": lam, "--beta": beta, "--gamma": gamma, "--per-writer-keys": per_writer_keys or None}
    _refuse_elsewhere(mode, "paper", paper, only_paper)
    preset = (0.0, 0.0)
    if noise:
        size = sum(math.prod(header.shape) for header in headers.values())
        preset = PAPER_ALPHA if paper else next((e, h) for most, e, h in NOISY_PRESETS if size <= most)
    chosen = {
        "mode": known,
        "hidden_size": _width(config, known, expand) if "hidden" in components else config.hidden_size,
        "dtype": check_dtype(dtype) if dtype else _dtype_of(headers, base),
        "alpha_e": preset[0] if alpha_e is None else alpha_e,
        "alpha_h": preset[1] if alpha_h is None else alpha_h,
        "lam": (PAPER_LAMBDA if lam is None else lam) if paper else 0.0,
        "beta": (PAPER_BETA if beta is None else beta) if paper else 1,
        "gamma": (PAPER_GAMMA if gamma is None else gamma) if paper else 0.0,
        "per_writer_keys": per_writer_keys,
        "components": components,
    }
    try:
        return msgspec.convert(chosen, Settings)
    except msgspec.ValidationError as error:
        raise InputError(f"a setting is out of range: {error}") from None


def _refuse_elsewhere(mode: str, where: str, holds: bool, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given and not holds:
        raise InputError(f"{', '.join(given)} has no meaning in mode {mode!r}; it belongs to --mode {where}")


def _width(config: PreTrainedConfig, mode: Mode, expand: int | None) -> int:
    """D, checked against what keys and engines take."""
    d, heads = int(config.hidden_size), int(config.num_attention_heads)
    step = math.lcm(heads, _WIDTH_STEP)
    usual = _next_multiple(d + PAPER_EXTRA, step)
    wide = expand if expand is not None else usual if mode == "paper" else d
    fits = f"give e.g. --expand {_next_multiple(d + 1, step)} or {usual}"
    if mode == "monomial" and wide != d:
        raise InputError(f"--expand {wide}: monomial keys permute the {d} hidden channels, so D = {d}; leave it out")
    # Beyond the upper bound it is a slip of the keyboard, and would fill the disk.
    if wide < d or wide > 4 * d + PAPER_EXTRA or wide % heads:
        raise InputError(
            f"--expand {wide} does not fit a hidden size of {d} with {heads} heads: engines want D ≥ {d} to be a multiple of "
            f"the heads; {fits}"
        )
    if mode == "paper" and (wide == d or (wide - d) % 4):
        raise InputError(
            f"D = {wide}: Algorithm 1 adds 2h channels with h even, so D − {d} must be 4, 8, 12, …; {fits}"
        )
    if config.model_type == "qwen2" and wide != d and "sliding_attention" in config.layer_types:
        raise UnsupportedModelError(
            f"with D = {wide} this qwen2 model would become a llama (engines derive qwen2's head size from D) and lose its "
            "sliding windows; it can be obfuscated with D = d only, in mode exact, noisy or monomial"
        )
    return wide


def _next_multiple(least: int, step: int) -> int:
    return -(-least // step) * step


def _dtype_of(headers: dict[str, TensorHeader], base: Path) -> DtypeName:
    """The type of most of a checkpoint's values."""
    sizes: Counter[str] = Counter()
    for header in headers.values():
        sizes[header.dtype] += math.prod(header.shape)
    unknown = set(sizes) - set(_FILE_DTYPES)
    if unknown:
        raise UnsupportedModelError(
            f"{base} holds tensors of type {', '.join(sorted(unknown))}; obfuscate a float32, bfloat16 or float16 checkpoint"
        )
    return _FILE_DTYPES[sizes.most_common(1)[0][0]]
