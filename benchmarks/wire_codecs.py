"""What each wire codec saves and costs: bytes, quality of the next token, time; and whether compression would add anything.

Quality is through the whole model, rows rounded both ways, all codecs on the same text. Low-rank codecs are built here, from
other text: one matrix for both directions, as a session uses it; one for each, which no session can, to bound what a better
choice would give; and a random one. Bytes on the socket are the kernel's count, TLS and WebSocket included.
Prints and writes the record ``wire_codecs``.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from importlib.metadata import version
from typing import Annotated

import torch
import zstandard
from cyclopts import App, Parameter
from rich.progress import track

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import dialler
from cutlayer.client.remote import RemoteBody
from cutlayer.corpora.questions import questions
from cutlayer.corpora.split import study_documents
from cutlayer.corpora.study import attacker_text
from cutlayer.defences.lowrank import principal_basis, random_basis
from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.models.parts import Body, ClientParts, load_body, load_client
from cutlayer.records.record import Figure, exact, median, new_record, quantile
from cutlayer.text.tokenizer import Tokenizer
from cutlayer.types import Cut
from cutlayer.wire.codecs import BF16, CODECS, Codec
from cutlayer.wire.codecs.lowrank import LowRankCodec
from next_token import Middle, next_token
from report import PROMPTS, command, finish, prompt_texts

app = App(help=__doc__)

PLAIN = ("fp32", "bf16", "fp16", "int8", "int4")
RANKS = (512, 288)
ROWS = (1, 8, 64)
LEVEL = 19
WARM = 260
"""Steps before those that are counted: position and sequence number then take the three bytes they take ever after."""
COUNTED = 20
_TCP_INFO_BYTES = 216
_BYTES_RECEIVED, _BYTES_SENT = 128, 200
"""Where Linux's ``struct tcp_info`` has them."""

Pair = tuple[Codec, Codec]
"""To the server and back; the same but where the point is that they cannot be."""


@app.default
def wire_codecs(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    documents: int = 24,
    asked: int = 12,
    tokens: int = 64,
    fitted: int = 6_000,
    rounds: int = 200,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers.
    documents
        Encyclopedia leads that quality is measured on, beside the twenty prompts.
    asked
        Questions of our own, likewise.
    tokens
        Of each, at most.
    fitted
        Tokens of other text that subspaces are fitted to.
    rounds
        Encodings timed.
    write
        Whether to write the record.
    """
    directory = locate(model)
    span = Cut.parse(cut, read_config(directory).num_hidden_layers)
    encode = Tokenizer(directory).encode
    own = [*prompt_texts(20), *(question.text for question in questions()[:: 200 // asked][:asked])]
    texts = [encode(text)[:tokens] for text in [*(d.text for d in study_documents(documents)), *own]]
    client, body = load_client(directory, span, torch.float32), load_body(directory, span, torch.float32)
    windows, source = attacker_text(encode, fitted)
    codecs: dict[str, Pair] = {name: (CODECS.get(name), CODECS.get(name)) for name in PLAIN}
    codecs |= _low_rank(*_states(client, body, windows))
    figures, samples = next_token(client, {name: _through(body, pair) for name, pair in codecs.items()}, texts)
    size = read_config(directory).hidden_size
    for name, (up, _) in codecs.items():
        figures[f"{name}_row_bytes"] = exact(up.row_bytes(size), "bytes")
    ours = [_states(client, body, [text]) for text in texts]
    for part in (
        _times(torch.cat([state for pair in ours for state in pair]), rounds),
        _socket_bytes(model, f"{span.start}:{span.start + 1}", size),
        _compression(ours),
    ):
        figures |= part
    record = new_record(
        "wire_codecs",
        command("wire_codecs"),
        {
            "model": model,
            "cut": str(span),
            "dtype": "float32",
            "text": f"{documents} encyclopedia leads of the held-out part, {PROMPTS}, {asked} questions of our own; "
            f"at most {tokens} tokens each",
            "subspaces": f"fitted to {source}; rows scaled to length 1, as the layers that read them do",
            "zstandard": {
                "version": version("zstandard"),
                "level": LEVEL,
                "bf16_planes": "all low bytes, then all high",
            },
            "socket": f"TLS 1.3 on loopback, steps {WARM} to {WARM + COUNTED} of one row each",
            "threads": torch.get_num_threads(),
            "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
            "load_average": os.getloadavg(),
        },
        figures,
        samples,
    )
    finish(record, write=write)


def _states(client: ClientParts, body: Body, texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states of texts that leave the head, and those that come back, [N, D] each."""
    up, down = [], []
    with torch.inference_mode():
        for text in texts:
            hidden = client.head(torch.tensor([text]), client.head.new_cache())  # [1, T, D]
            up.append(hidden[0])
            down.append(body(hidden, body.new_cache())[0])
    return torch.cat(up), torch.cat(down)


def _low_rank(up: torch.Tensor, down: torch.Tensor) -> dict[str, Pair]:
    """Codecs of the main directions of states [N, D]."""
    up, down = (rows / rows.norm(dim=-1, keepdim=True) for rows in (up, down))
    codecs: dict[str, Pair] = {}
    for rank in RANKS:
        both = LowRankCodec(principal_basis(torch.cat([up, down]), rank), BF16)
        each = tuple(LowRankCodec(principal_basis(rows, rank), BF16) for rows in (up, down))
        codecs[f"lowrank{rank}"] = both, both
        codecs[f"lowrank{rank}_each_way"] = each[0], each[1]
    random = LowRankCodec(random_basis(up.shape[1], RANKS[0], 0), BF16)
    return {**codecs, f"lowrank{RANKS[0]}_random": (random, random)}


def _through(body: Body, pair: Pair) -> Middle:
    def run(hidden: torch.Tensor) -> torch.Tensor:
        return _sent(body(_sent(hidden, pair[0]), body.new_cache()), pair[1])

    return run


def _sent(hidden: torch.Tensor, codec: Codec) -> torch.Tensor:
    """States [1, T, D] as the other side has them."""
    return codec.decode(codec.encode(hidden[0]), hidden.shape[-1]).float()[None]


def _times(states: torch.Tensor, rounds: int) -> dict[str, Figure]:
    """Microseconds per call, the processor's caches warm: the codecs in turn, so that whatever else runs hits all alike."""
    taken: dict[str, list[float]] = {}
    for i in track(range(rounds), description="times"):
        for count in ROWS:
            at = i * count % (len(states) - count)
            rows = states[at : at + count].clone()
            for name in PLAIN:
                codec = CODECS.get(name)
                started = time.perf_counter()
                data = codec.encode(rows)
                between = time.perf_counter()
                codec.decode(data, states.shape[1])
                ended = time.perf_counter()
                taken.setdefault(f"{name}_encode_us_{count}", []).append((between - started) * 1e6)
                taken.setdefault(f"{name}_decode_us_{count}", []).append((ended - between) * 1e6)
    return {key: median(values, "µs") for key, values in taken.items()}


def _socket_bytes(model: str, cut: str, size: int) -> dict[str, Figure]:
    """Bytes of one decode step, both ways, as the kernel counts them; how many layers the server runs is no matter."""
    figures = {}
    drawn = torch.Generator().manual_seed(0)
    with ServerProcess(model, cut) as server:
        for name in track(PLAIN, description="socket"):
            remote = RemoteBody(dialler(server.url, keys=server.client_keys))
            info = remote.info()
            remote.open(info.fingerprint, info.cut, CODECS.get(name), size)
            counts = []
            for position in range(WARM + COUNTED + 1):
                counts.append(_counted(remote))
                remote.send(position, torch.randn(1, size, generator=drawn))
                remote.receive()
            remote.close()
            steps = [float(after - before) for before, after in zip(counts[WARM:], counts[WARM + 1 :], strict=False)]
            figures[f"{name}_step_bytes"] = median(steps, "bytes")
    return figures


def _counted(remote: RemoteBody) -> int:
    """Bytes the kernel sent and received on a connection so far."""
    raw: socket.socket = remote._transport._socket.socket  # type: ignore[attr-defined]
    info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int(sum(struct.unpack_from("<Q", info, at)[0] for at in (_BYTES_RECEIVED, _BYTES_SENT)))


def _compression(states: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Figure]:
    """Compressed over plain size of steps: the median, and the largest seen, below which no fixed frame size may lie."""
    compressor = zstandard.ZstdCompressor(level=LEVEL)
    ratios: dict[str, list[float]] = {}
    for both in track(states, description="zstd"):
        for rows in both:
            for count in ROWS:
                for at in range(0, len(rows) - count + 1, max(count, 8)):
                    for name, data in _payloads(rows[at : at + count]):
                        key = f"zstd_{name}_{count}"
                        ratios.setdefault(key, []).append(len(compressor.compress(data)) / len(data))
    return {f"{key}_median": quantile(values, 0.5, "ratio") for key, values in ratios.items()} | {
        f"{key}_largest": exact(max(values), "ratio", len(values)) for key, values in ratios.items()
    }


def _payloads(rows: torch.Tensor) -> Iterator[tuple[str, bytes]]:
    """What a compressor would be given."""
    for name in ("fp32", "bf16", "int8", "int4"):
        data = CODECS.get(name).encode(rows)
        yield name, data
        if name == "bf16":
            yield "bf16_planes", data[::2] + data[1::2]


if __name__ == "__main__":
    app()
