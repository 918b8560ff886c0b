"""What the trusted side loads once: the model's outer layers, its tokenizer, and how hidden states travel.

Any number of sessions may run on one `Trusted`; each has caches, a connection and a defence secret of its own.

`turn` is held for every forward pass: transformers does not promise that one model may be called from two threads at once.
Little is lost, for a pass already uses all cores, and waiting for the server is outside of it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from cutlayer.errors import CutError, ModelNotFoundError, ProtocolError, RemoteCode, RemoteError
from cutlayer.models.family import read_config
from cutlayer.models.locate import fingerprint, locate, pulled_models
from cutlayer.models.parts import load_client
from cutlayer.models.weights import keep_weights
from cutlayer.text.tokenizer import Tokenizer
from cutlayer.types import Cut, DtypeName, check_dtype
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS, LOSSLESS_FOR

if TYPE_CHECKING:
    from pathlib import Path

    from cutlayer.models.parts import ClientParts
    from cutlayer.wire.codecs import Codec
    from cutlayer.wire.frames import InfoReply


class Trusted:
    """Head, tail and tokenizer of the model a server runs the middle of.

    Args:
        info: what the server says it runs.
        model: local model, None for the pulled one of the server's name.
        cut: insist on this one, None for the server's.
        dtype: of head and tail, None for the server's.
        codec: None is the dtype's lossless one.
        device: where head and tail run.

    Raises:
        ModelNotFoundError: the model is not on this machine.
        RemoteError: the server runs other weights.
        CutError: it cuts them elsewhere.
        ProtocolError: what it says fits no model or protocol of ours.
    """

    def __init__(
        self,
        info: InfoReply,
        model: str | None = None,
        cut: str | None = None,
        dtype: str | None = None,
        codec: str | None = None,
        device: str = "cpu",
    ) -> None:
        self.info = info
        self.directory = _local_model(model, info)
        self.cut = _agreed_cut(cut, info, self.directory)
        self.tokenizer = Tokenizer(self.directory)
        self.dtype: DtypeName = check_dtype(dtype or info.dtype)
        self.parts: ClientParts = load_client(self.directory, self.cut, getattr(torch, self.dtype), device)
        keep_weights(self.parts.tail, "dtype")
        self.codec: Codec = CODECS.get(codec or LOSSLESS_FOR[self.dtype])
        self.turn = threading.Lock()
        """Held while a forward pass runs."""


def _local_model(chosen: str | None, info: InfoReply) -> Path:
    if info.protocol != frames.PROTOCOL:
        raise ProtocolError(
            f"the server speaks protocol {info.protocol}, this client {frames.PROTOCOL}; update the older"
        )
    name = chosen or info.model
    if chosen is None and name not in pulled_models():
        # The server's word picks among models pulled here, never a path or a download.
        raise ModelNotFoundError(
            f"the server runs {name!r}, which was not pulled here; say which local model it is (--model)"
        )
    directory = locate(name)
    if fingerprint(directory) != info.fingerprint:
        raise RemoteError(
            RemoteCode.MODEL_MISMATCH,
            f"the server's {info.model} is not the model in {directory}; both need the same weights",
        )
    size = read_config(directory).hidden_size
    if info.hidden_size != size:
        raise ProtocolError(
            f"the server claims hidden states of size {info.hidden_size}; those of {directory} have {size}"
        )
    return directory


def _agreed_cut(wanted: str | None, info: InfoReply, directory: Path) -> Cut:
    layers = read_config(directory).num_hidden_layers
    if info.cut.layers != layers:
        raise CutError(f"the server cuts a model of {info.cut.layers} layers, {directory} has {layers}")
    if wanted is not None and Cut.parse(wanted, layers) != info.cut:
        raise CutError(
            f"the server runs layers {info.cut}, you asked for {Cut.parse(wanted, layers)}; nothing was sent"
        )
    return info.cut
