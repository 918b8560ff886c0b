"""Leaks planted in transport, codec and defence: the doctor must find each, and say what it is."""

from __future__ import annotations

import base64
import json
import struct
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch

from cutlayer.audit import probe
from cutlayer.client.connect import Client
from cutlayer.defences.defence import MECHANISMS
from cutlayer.defences.none import MECHANISM as NONE
from cutlayer.wire import frames
from cutlayer.wire.codecs import CODECS, FloatCodec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SECRET = "Ada Lovelace lives at Foo Street 12 and owes 4711 crowns."


class Insider:
    """What leaking code inside the client would know."""

    def __init__(self) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.embedding = torch.empty(0)
        self.logits = torch.empty(0)


@pytest.fixture
def insider(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Insider]:
    """Replaces the client by one whose transport changes every STEP once the prompt is known."""

    def plant(change: Callable[[Insider, bytes], bytes] = lambda insider, data: data) -> Insider:
        known = Insider()

        class Leaking:
            def __init__(self, inner: Any) -> None:
                self._inner = inner

            def send(self, data: bytes) -> None:
                step = data[0] == frames.Kind.STEP
                self._inner.send(change(known, data) if step else data)

            def __getattr__(self, name: str) -> Any:
                return getattr(self._inner, name)

        class LeakingClient(Client):
            def __init__(self, connect: Any, options: Any) -> None:
                super().__init__(lambda: Leaking(connect()), options)
                known.embedding = self.parts.head.embedding()
                self.parts.tail.register_forward_hook(self._note_logits)

            def _note_logits(self, module: Any, inputs: Any, logits: torch.Tensor) -> None:
                known.logits = logits[0, -1]

            def generate(self, prompt: Any, **settings: Any) -> Any:
                known.text, known.ids = prompt, self.encode(prompt, raw=settings["raw"])
                return super().generate(prompt, **settings)

        monkeypatch.setattr(probe, "Client", LeakingClient)
        return known

    return plant


def appended(make: Callable[[Insider], bytes]) -> Callable[[Insider, bytes], bytes]:
    return lambda known, data: data + make(known)


TEXTS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "utf-16-le": lambda text: text.encode("utf-16-le"),
    "utf-16-be": lambda text: text.encode("utf-16-be"),
    "upper case": lambda text: text.upper().encode(),
    "lower case in utf-16": lambda text: text.lower().encode("utf-16-le"),
    "one word": lambda text: b"Lovelace",
    "a short word": lambda text: b"lives",
    "a part": lambda text: text[11:37].encode(),
    "base64": lambda text: base64.b64encode(text.encode()),
    "base64 behind something": lambda text: base64.b64encode(b"{" + text.encode()),
    "base64 behind something else": lambda text: base64.urlsafe_b64encode(b"??" + text.encode()),
    "hex": lambda text: text.encode().hex().encode(),
    "upper case hex": lambda text: text.encode().hex().upper().encode(),
    "JSON": lambda text: json.dumps({"prompt": text}).encode(),
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_text_in_a_frame(bench, finding, insider, encoding: str) -> None:
    insider(appended(lambda known: TEXTS[encoding](known.text)))
    diagnosis = bench.examine(prompt=SECRET)
    assert {"text", "frames", "outgoing bytes"} <= set(diagnosis.failed)
    assert "STEP, sent" in finding(diagnosis, "text").explanation
    assert "Lovelace" not in msgspec.json.encode(diagnosis).decode()
    assert diagnosis.exit_code == 1


def test_the_canary_in_a_frame(bench, finding, insider) -> None:
    insider(appended(lambda known: known.text.split(": ")[1].encode()))
    assert "the canary" in finding(bench.examine(), "text").explanation


def varints(ids: Sequence[int]) -> bytes:
    assert max(ids) < 128
    return bytes(ids)


IDS: dict[str, Callable[[Sequence[int]], bytes]] = {
    **{
        f"{order}{code}": (lambda form: lambda ids: struct.pack(f"{form[0]}{len(ids)}{form[1]}", *ids))(order + code)
        for order in "<>"
        for code in "HiIqQf"
    },
    "MessagePack": lambda ids: msgspec.msgpack.encode(list(ids)),
    "JSON": lambda ids: json.dumps(list(ids)).encode(),
    "compact JSON": lambda ids: json.dumps(list(ids), separators=(",", ":")).encode(),
    "decimal": lambda ids: " ".join(map(str, ids)).encode(),
    "varint": varints,
}


@pytest.mark.parametrize("encoding", IDS)
def test_token_ids_in_a_frame(bench, finding, insider, encoding: str) -> None:
    insider(appended(lambda known: IDS[encoding](known.ids)))
    diagnosis = bench.examine()
    assert {"token ids", "frames", "outgoing bytes"} <= set(diagnosis.failed)
    assert "token ids of the prompt" in finding(diagnosis, "token ids").explanation


@pytest.mark.parametrize("encoding", ["<i", ">q", "MessagePack", "JSON"])
def test_a_few_token_ids_in_a_frame(bench, insider, encoding: str) -> None:
    insider(appended(lambda known: IDS[encoding](known.ids[20:29])))
    assert "token ids" in bench.examine().failed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_embedding_row_in_a_frame(bench, finding, insider, dtype: torch.dtype) -> None:
    insider(appended(lambda known: known.embedding[known.ids[3]].to(dtype).view(torch.uint8).numpy().tobytes()))
    diagnosis = bench.examine()
    assert "embeddings" in diagnosis.failed
    assert "an embedding row" in finding(diagnosis, "embeddings").explanation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_logits_in_a_frame(bench, finding, insider, dtype: torch.dtype) -> None:
    def logits(known: Insider, data: bytes) -> bytes:
        return data + known.logits.to(dtype).view(torch.uint8).numpy().tobytes() if len(known.logits) else data

    insider(logits)
    diagnosis = bench.examine()
    assert "logits" in diagnosis.failed
    assert "Found logits" in finding(diagnosis, "logits").explanation


# --- leaks that no search can find: only the account of every outgoing byte does ------------------------------------------


def test_a_single_flipped_bit_of_a_hidden_state(bench, finding, insider) -> None:
    """One bit per value is room for a whole prompt, encrypted, in numbers nobody could tell from honest ones."""
    insider(lambda known, data: data[:-4] + bytes([data[-4] ^ 1]) + data[-3:])
    diagnosis = bench.examine(max_tokens=1)
    assert diagnosis.failed == ["outgoing bytes"]
    assert "1 of " in finding(diagnosis, "outgoing bytes").explanation


def test_a_number_spelled_the_long_way(bench, finding, insider) -> None:
    """MessagePack has five spellings of a small number; the choice among them carries bits that decode to nothing."""

    def respell(known: Insider, data: bytes) -> bytes:
        length = struct.unpack_from("<H", data, 1)[0]
        header, payload = data[3 : 3 + length], data[3 + length :]
        assert header[1] == 1  # the sequence number of the first step, as one byte
        longer = header[:1] + b"\xcd\x00\x01" + header[2:]
        return struct.pack("<BH", data[0], len(longer)) + longer + payload

    insider(respell)
    diagnosis = bench.examine(max_tokens=1)
    assert diagnosis.failed == ["frames"]
    assert "spelling" in finding(diagnosis, "frames").explanation


def test_bits_in_a_field_of_the_header(bench, finding, monkeypatch: pytest.MonkeyPatch) -> None:
    real = frames.encode

    def encode(header: frames.Header, payload: bytes = b"") -> bytes:
        if isinstance(header, frames.Open):
            header = msgspec.structs.replace(header, max_positions=203)
        return real(header, payload)

    monkeypatch.setattr("cutlayer.wire.client_session.frames", _Patched(encode))
    diagnosis = bench.examine()
    assert diagnosis.failed == ["outgoing bytes"]
    assert "OPEN" in finding(diagnosis, "outgoing bytes").explanation


def test_bits_in_a_tree_where_nothing_was_guessed(bench, finding, monkeypatch: pytest.MonkeyPatch) -> None:
    real = frames.encode

    def encode(header: frames.Header, payload: bytes = b"") -> bytes:
        if isinstance(header, frames.Step) and header.count > 2:
            header = msgspec.structs.replace(header, parents=bytes([1, *[1, 2] * header.count])[: header.count])
        return real(header, payload)

    monkeypatch.setattr("cutlayer.wire.client_session.frames", _Patched(encode))
    assert "guesses" in finding(bench.examine(), "outgoing bytes").explanation


class _Patched:
    """The module `frames` with another `encode`."""

    def __init__(self, encode: Any) -> None:
        self.encode = encode

    def __getattr__(self, name: str) -> Any:
        return getattr(frames, name)


def test_a_row_sent_twice_under_other_positions(bench, insider) -> None:
    """Every row is one the head computed, but not for that position."""

    def swap(known: Insider, data: bytes) -> bytes:
        row = 32 * 4
        return data[: -2 * row] + data[-row:] + data[-2 * row : -row]

    insider(swap)
    assert "outgoing bytes" in bench.examine(max_tokens=1).failed


# --- codec and defence ----------------------------------------------------------------------------------------------------


def hidden_in(rows: torch.Tensor, secret: bytes) -> torch.Tensor:
    """The rows with their first bytes replaced."""
    data = bytearray(rows.contiguous().view(torch.uint8).numpy().tobytes())
    data[: len(secret)] = secret
    return torch.frombuffer(data, dtype=torch.float32).view(rows.shape)


class LeakingCodec(FloatCodec):
    """Writes token ids over the first values of a prompt's rows."""

    def __init__(self, known: Insider) -> None:
        super().__init__("fp32", torch.float32)
        self.known = known

    def encode(self, hidden: torch.Tensor) -> bytes:
        ids = struct.pack(f"<{len(self.known.ids)}q", *self.known.ids)
        return super().encode(hidden_in(hidden, ids) if self.known.ids else hidden)


def test_a_codec_that_writes_token_ids(bench, finding, insider, monkeypatch: pytest.MonkeyPatch) -> None:
    known = insider()
    CODECS.get("fp32")
    monkeypatch.setitem(CODECS._resolved, "fp32", LeakingCodec(known))
    diagnosis = bench.examine(max_tokens=1)
    assert {"token ids", "outgoing bytes"} <= set(diagnosis.failed)
    assert "Codec fp32 changed a row" in finding(diagnosis, "outgoing bytes").explanation
    assert "frames" not in diagnosis.failed


class LeakingDefence:
    """Whatever `change` makes of the rows."""

    card = NONE.card

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], name: str = "gaussian") -> None:
        self._change = change
        self._name = name

    def build(self, spec: Any, session: Any, head: Any) -> LeakingDefence:
        return self

    def channel(self, spec: Any, head: Any, precision: float) -> Any:
        return NONE.channel(spec, head, precision)

    def release(self, hidden: torch.Tensor, positions: Any) -> torch.Tensor:
        return self._change(hidden)

    def describe(self) -> str:
        return self._name


def test_a_defence_that_writes_the_prompt(bench, finding, insider, monkeypatch: pytest.MonkeyPatch) -> None:
    known = insider()
    leaking = LeakingDefence(lambda hidden: hidden_in(hidden, known.text.encode()))
    monkeypatch.setitem(MECHANISMS._resolved, "gaussian", leaking)
    diagnosis = bench.examine(options={"defence": "gaussian"}, max_tokens=1)
    assert "text" in diagnosis.failed
    assert "frames" not in diagnosis.failed


def test_a_defence_that_sends_embeddings_after_all(bench, finding, insider, monkeypatch: pytest.MonkeyPatch) -> None:
    known = insider()
    leaking = LeakingDefence(lambda hidden: 0.7 * known.embedding[5:6].expand_as(hidden))
    monkeypatch.setitem(MECHANISMS._resolved, "gaussian", leaking)
    diagnosis = bench.examine(options={"defence": "gaussian"}, max_tokens=1)
    assert diagnosis.failed == ["embeddings"]
    assert finding(diagnosis, "embeddings").evidence["closest_cosine"] == pytest.approx(1)


def test_a_defence_called_none_that_does_something(bench, finding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MECHANISMS._resolved, "none", LeakingDefence(lambda hidden: hidden * 1.0001, "none"))
    assert bench.examine().failed == ["defence"]


def test_a_defence_that_does_nothing(bench, finding, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MECHANISMS._resolved, "gaussian", LeakingDefence(lambda hidden: hidden))
    assert bench.examine(options={"defence": "gaussian"}).failed == ["defence"]


def test_a_defence_whose_noise_is_fresh_every_time(bench, finding, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that makes the client send again could average such noise away."""
    fresh = LeakingDefence(lambda hidden: hidden + torch.randn_like(hidden))
    monkeypatch.setitem(MECHANISMS._resolved, "gaussian", fresh)
    assert bench.examine(options={"defence": "gaussian"}).failed == ["outgoing bytes"]
