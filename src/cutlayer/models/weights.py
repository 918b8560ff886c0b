"""How a part's weights are kept in memory, apart from the dtype it computes in.

`dtype` keeps them in that dtype, packed where that makes products faster (`packed`). `int8` rounds every linear layer's
weights to 8 bits with one scale per output row (symmetric, nothing is calibrated) through torchao. Hidden states, norms,
attention and the cache stay in the part's dtype. Experts that a family keeps in one tensor for all of them are no linear
layers and stay as they are, which `stored_bytes` shows.

What it costs in quality and time is in `benchmarks/records/weights.json`. On a processor each product first expands its weights,
so int8 saves memory, not time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from torch import nn

from cutlayer.errors import InputError, UnsupportedModelError
from cutlayer.models.packed import pack

if TYPE_CHECKING:
    import torch

    from cutlayer.models.parts import Part

WeightsName = Literal["dtype", "int8"]
WEIGHTS_NAMES: Final[tuple[WeightsName, ...]] = get_args(WeightsName)


def check_weights(name: str) -> WeightsName:
    """Return `name` as a `WeightsName`.

    Raises:
        InputError: not one of dtype, int8.
    """
    for known in WEIGHTS_NAMES:
        if name == known:
            return known
    raise InputError(f"unknown weights {name!r}; available: {', '.join(WEIGHTS_NAMES)}")


def keep_weights(part: Part, weights: WeightsName) -> None:
    """Change how a filled part keeps its weights, in place; afterwards it can be run, not trained.

    Raises:
        InputError: torchao is not installed.
        UnsupportedModelError: the part has no linear layer.
    """
    if weights == "dtype":
        pack(part.shell)
        return
    if not any(isinstance(module, nn.Linear) for module in part.shell.modules()):
        raise UnsupportedModelError("this model's layers hold no linear layer that could be kept in int8")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ModuleNotFoundError as error:
        raise InputError(f"int8 weights need {error.name}; pip install 'cutlayer[int8]'") from error
    # Its recommended settings are of torch.compile, process-wide, and nothing here is compiled.
    quantize_(part.shell, Int8WeightOnlyConfig(set_inductor_config=False))


def stored_bytes(part: Part) -> int:
    """Bytes that a part's parameters and buffers take; packed ones as they are packed, shared ones once."""
    tensors = {id(tensor): tensor for tensor in (*part.shell.parameters(), *part.shell.buffers())}
    return sum(_nbytes(tensor) for tensor in tensors.values())


def _nbytes(tensor: torch.Tensor | Any) -> int:
    if hasattr(
        tensor, "__tensor_flatten__"
    ):  # packed: made of plain tensors, and itself only claims a shape and a dtype
        inner, _ = tensor.__tensor_flatten__()
        return sum(_nbytes(getattr(tensor, name)) for name in inner)
    return int(tensor.nbytes)
