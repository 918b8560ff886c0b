"""cutlayer: a language model split between a machine you trust and a server you don't.

    import cutlayer

    with cutlayer.connect("wss://gpu.example:8443", keys="keys/client") as client:
        for piece in client.generate("What is the capital of France?"):
            print(piece.text, end="", flush=True)

`cutlayer.connect` is the synchronous form, `cutlayer.aconnect` the asynchronous one. Both are imported on first use, so
that the server side never loads client code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cutlayer.client.aio import AsyncClient, aconnect
    from cutlayer.client.connect import Client, connect
    from cutlayer.client.sampling import Sampling

_PUBLIC = {
    "AsyncClient": "cutlayer.client.aio",
    "Client": "cutlayer.client.connect",
    "Sampling": "cutlayer.client.sampling",
    "aconnect": "cutlayer.client.aio",
    "connect": "cutlayer.client.connect",
}

__all__ = ["AsyncClient", "Client", "Sampling", "aconnect", "connect"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'cutlayer' has no attribute {name!r}")
