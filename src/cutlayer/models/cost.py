"""What one cut costs: memory on both sides, bytes per token and tokens per second.

Units: GB are 10⁹ bytes, Mbit are 10⁶ bits, times are milliseconds. Notation: D hidden size, L layers, k head layers,
m tail layers.

Speed is that of sequential decoding, one token per round trip over a warm connection:

    tokens/s = 1 / (RTT + t_client + t_server + bytes_up / uplink + bytes_down / downlink)

Footguns: t_client and t_server are estimated as bytes read over memory bandwidth, the floor of decoding one token at a
time; give measured times where there are any. A cache grows by doubling, so that up to twice the KV bytes stated may be
allocated. A cold connection costs more than this model says.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.types import DTYPE_BYTES, Cut, DtypeName

if TYPE_CHECKING:
    from cutlayer.models.conditions import Conditions
    from cutlayer.models.parameters import Parameters

UPLINK_OVERHEAD: Final = 22
"""Bytes around the hidden states of one STEP: frame prefix and header (sequence, base, count, flags, digest)."""
DOWNLINK_OVERHEAD: Final = 16
"""Bytes around the hidden states of one RESULT."""

_FLOATS: Final[dict[str, int]] = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes per number of the codecs that send numbers as they are (`cutlayer.wire.codecs`, which this package must not import)."""
_INTEGERS: Final[dict[str, tuple[int, int]]] = {"int8": (8, 64), "int4": (4, 32)}
"""Bits per number, and numbers per group, of the codecs that round."""
_KEPT_CHANNELS: Final = 8
"""Of a rounded row: sent apart, with two bytes for the place and two for the value. A group's scale takes two as well."""
LOSSLESS: Final[dict[DtypeName, str]] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}

KV_POSITIONS: Final = 1024
"""The "1k" of KV per 1k positions."""
INT4_BITS: Final = 4.5
"""Four bits per parameter and a 16-bit scale per 32 of them."""


class WeightBytes(msgspec.Struct, frozen=True):
    """Bytes of one side's weights by format.

    Attributes:
        float32: 4 bytes per parameter.
        bfloat16: 2 bytes per parameter (float16 takes the same).
        int8: 1 byte per parameter, embedding included.
        int4: 4.5 bits per parameter without the embedding.
        int4_embedding: the embedding that goes with `int4`, in bfloat16: a lookup reads one row per token, so it can
            stay on disk or in main memory. With tied embeddings it is the output head too.
    """

    float32: int
    bfloat16: int
    int8: int
    int4: int
    int4_embedding: int


class Side(msgspec.Struct, frozen=True):
    """One machine's share of a cut.

    Attributes:
        parameters: how many it holds.
        weights: their bytes by format.
        kv_bytes: keys and values of `KV_POSITIONS` positions in the compute dtype.
        token_ms: time per token, estimated or as given.
    """

    parameters: int
    weights: WeightBytes
    kv_bytes: int
    token_ms: float


class CutCost(msgspec.Struct, frozen=True):
    """What one cut costs.

    Attributes:
        cut: as ``serve --cut`` takes it.
        head_layers: k.
        body_layers: L − k − m.
        tail_layers: m.
        client: the trusted side.
        server: the untrusted side.
        client_bytes: the client's weights in the compute dtype and KV of the whole context.
        fits: whether `client_bytes` is within the bound; None without one.
        tokens_per_s: predicted, by wire codec.
        warning: what this cut gives away by construction, if anything.
    """

    cut: str
    head_layers: int
    body_layers: int
    tail_layers: int
    client: Side
    server: Side
    client_bytes: int
    fits: bool | None
    tokens_per_s: dict[str, float]
    warning: str | None


class WireBytes(msgspec.Struct, frozen=True):
    """Bytes per token each way, our framing included, TLS and TCP not."""

    up: int
    down: int


def cut_cost(parameters: Parameters, cut: Cut, conditions: Conditions, wire: dict[str, WireBytes]) -> CutCost:
    """Cost `cut` of a model.

    Args:
        parameters: counts of the model.
        cut: within its layers.
        conditions: machines and link.
        wire: bytes per token by codec, from `wire_bytes`.
    """
    inner = slice(cut.start, cut.stop)
    width = DTYPE_BYTES[conditions.dtype]
    body, body_read = sum(parameters.layers[inner]), sum(parameters.layers_read[inner])
    client_read = sum(parameters.layers_read) - body_read + parameters.head_read
    client_kv, server_kv = (
        (n * parameters.cached * width) for n in (cut.head_layers + cut.tail_layers, cut.body_layers)
    )
    client = Side(
        parameters=parameters.total - body,
        weights=weight_bytes(parameters.total - body, parameters.embedding),
        kv_bytes=client_kv * KV_POSITIONS,
        token_ms=_or_floor(
            conditions.client_ms, client_read * width + client_kv * conditions.context, conditions.client_gbps
        ),
    )
    server = Side(
        parameters=body,
        weights=weight_bytes(body, 0),
        kv_bytes=server_kv * KV_POSITIONS,
        token_ms=_or_floor(
            conditions.server_ms, body_read * width + server_kv * conditions.context, conditions.server_gbps
        ),
    )
    held = client.parameters * width + client_kv * conditions.context
    bound = conditions.client_memory_gb
    return CutCost(
        cut=str(cut),
        head_layers=cut.head_layers,
        body_layers=cut.body_layers,
        tail_layers=cut.tail_layers,
        client=client,
        server=server,
        client_bytes=held,
        fits=None if bound is None else held <= bound * 1e9,
        tokens_per_s={
            codec: 1e3 / (client.token_ms + server.token_ms + wire_ms(size, conditions)) for codec, size in wire.items()
        },
        warning=_gives_away(cut),
    )


def row_bytes(hidden_size: int) -> dict[str, int]:
    """Bytes of one position's hidden states, by codec."""
    rows = {codec: hidden_size * width for codec, width in _FLOATS.items()}
    for codec, (bits, group) in _INTEGERS.items():
        groups = math.ceil(hidden_size / group)
        rows[codec] = groups * (2 + group * bits // 8) + 4 * min(_KEPT_CHANNELS, hidden_size)
    return rows


def wire_bytes(hidden_size: int) -> dict[str, WireBytes]:
    """Bytes per token by codec."""
    return {
        codec: WireBytes(up=row + UPLINK_OVERHEAD, down=row + DOWNLINK_OVERHEAD)
        for codec, row in row_bytes(hidden_size).items()
    }


def weight_bytes(parameters: int, embedding: int) -> WeightBytes:
    """Bytes of `parameters` parameters, `embedding` of which are the embedding matrix."""
    return WeightBytes(
        float32=4 * parameters,
        bfloat16=2 * parameters,
        int8=parameters,
        int4=math.ceil((parameters - embedding) * INT4_BITS / 8),
        int4_embedding=2 * embedding,
    )


def wire_ms(size: WireBytes, conditions: Conditions) -> float:
    """Milliseconds one token spends on the link. 1 Mbit/s is 125 bytes per millisecond."""
    return conditions.rtt_ms + size.up / (125 * conditions.uplink_mbps) + size.down / (125 * conditions.downlink_mbps)


def _or_floor(given_ms: float | None, read: int, gbps: float) -> float:
    """The time given, or that of reading `read` bytes once. 1 GB/s is 10⁶ bytes per millisecond."""
    return given_ms if given_ms is not None else read / (gbps * 1e6)


def _gives_away(cut: Cut) -> str | None:
    given = []
    if cut.head_layers == 0:
        given.append("the server receives the embeddings themselves, which a table lookup turns back into the prompt")
    if cut.tail_layers == 0:
        given.append(
            "the server computes the final states, which the model's own output head turns into the next token"
        )
    return "; ".join(given) or None
