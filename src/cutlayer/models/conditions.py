"""What a cost estimate assumes about the two machines and the link between them."""

from __future__ import annotations

import math
from typing import Final

import msgspec

from cutlayer.errors import InputError
from cutlayer.types import DtypeName, check_dtype

# Assumed, for want of a measurement; both are options. Batch-1 decoding reaches about two thirds of the nominal figure.
CLIENT_GBPS: Final = 35.0
"""A laptop: two channels of DDR4-3200 are nominally 51.2 GB/s."""
SERVER_GBPS: Final = 1000.0
"""One data-centre GPU: an A100 40 GB is nominally 1555 GB/s."""


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """What is assumed about the machines and the link between them.

    Attributes:
        dtype: of weights, computation and KV for speed and for the memory bound.
        context: positions cached, for KV memory and its reading time.
        rtt_ms: round trip of the link.
        downlink_mbps: server → client, Mbit/s.
        uplink_mbps: client → server, Mbit/s.
        client_gbps: memory bandwidth of the client, GB/s.
        server_gbps: memory bandwidth of the server, GB/s.
        client_ms: measured client time per token, used for every cut in place of the estimate.
        server_ms: the same of the server.
        client_memory_gb: what weights and KV may take on the client.

    Raises:
        InputError: a value is out of range.
    """

    dtype: DtypeName = "bfloat16"
    context: int = 4096
    rtt_ms: float = 80.0
    downlink_mbps: float = 100.0
    uplink_mbps: float = 100.0
    client_gbps: float = CLIENT_GBPS
    server_gbps: float = SERVER_GBPS
    client_ms: float | None = None
    server_ms: float | None = None
    client_memory_gb: float | None = None

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        for name in ("context", "downlink_mbps", "uplink_mbps", "client_gbps", "server_gbps", "client_memory_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be a number above 0")
        for name in ("rtt_ms", "client_ms", "server_ms"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} is {value}; it must be a number of milliseconds, 0 or more")
