"""Every registered codec between a client and a server: what comes back is the body's output, rounded on both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.client.remote import Patience, RemoteBody
from cutlayer.errors import RemoteCode, RemoteError
from cutlayer.models.parts import load_body
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.models.parts import Body

HIDDEN = 32


@pytest.fixture(scope="module")
def server(tiny: Callable[[str], Path]) -> Iterator[LocalServer]:
    with LocalServer(build_service(tiny("llama"), "tiny", "2:-2", "float32")) as server:
        yield server


@pytest.fixture(scope="module")
def body(server: LocalServer, tiny: Callable[[str], Path]) -> Body:
    return load_body(tiny("llama"), server.service.info.cut, torch.float32)


def rows(count: int) -> torch.Tensor:
    """[T, D], one channel far above the rest."""
    values = torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count))
    values[:, 7] = 300
    return values


@pytest.mark.parametrize("name", CODECS.names())
def test_both_ways_are_rounded_once(server: LocalServer, body: Body, name: str) -> None:
    codec, info, sent = CODECS.get(name), server.service.info, rows(6)
    remote = RemoteBody(server.connect, Patience(step_s=20, recover_s=20))
    remote.open(info.fingerprint, info.cut, codec, HIDDEN)
    remote.send(0, sent)
    returned = remote.receive().hidden.float()
    remote.close()
    with torch.inference_mode():
        due = body(codec.decode(codec.encode(sent), HIDDEN).float()[None], body.new_cache())[0]
    allowed = (codec.precision + 1e-4) * due.norm(dim=-1)
    assert ((returned - due).norm(dim=-1) <= allowed).all()


@pytest.mark.parametrize(
    ("spoil", "code"), [((2, b"\xff\xff"), RemoteCode.BAD_FRAME), ((0, b"\x80\x7f"), RemoteCode.NON_FINITE)]
)
def test_rows_that_are_none_are_refused_by_name(
    server: LocalServer, spoil: tuple[int, bytes], code: RemoteCode
) -> None:
    """The first kept channel at bytes 2 and 3 of an int8 row of one group; its scale at 0 and 1."""
    transport, session, info = (
        server.connect(),
        ClientSession(CODECS.get("int8").row_bytes(HIDDEN)),
        server.service.info,
    )
    transport.send(session.open(info.fingerprint, info.cut, "int8"))
    session.receive(transport.recv())
    row = bytearray(CODECS.get("int8").encode(rows(1)))
    at, bytes_ = spoil
    row[at : at + 2] = bytes_
    transport.send(session.step(0, bytes(row)))
    with pytest.raises(RemoteError) as refused:
        session.receive(transport.recv())
    assert refused.value.code == code
    transport.close()


@pytest.mark.parametrize("asked", ["int8:group=1", "int8:kept=4294967295", "int4,int8", "INT8"])
def test_a_server_looks_names_up_whole(server: LocalServer, asked: str) -> None:
    transport, info = server.connect(), server.service.info
    transport.send(frames.encode(frames.Open(frames.PROTOCOL, info.fingerprint, info.cut, asked, 0)))
    answer = frames.decode(transport.recv()).header
    assert isinstance(answer, frames.Failure)
    assert answer.code == RemoteCode.BAD_FRAME
    assert "int8" in answer.message
    assert not answer.fatal
    transport.close()
