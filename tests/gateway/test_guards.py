"""Who gets in, and what a hostile request gets: an answer in OpenAI's shape that quotes nothing, and never a 500."""

from __future__ import annotations

import hashlib
import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.errors import InputError, InsecureError
from cutlayer.gateway.access import listen_policy, names_of
from cutlayer.gateway.body import BodyLimits
from cutlayer.wire.token_book import TokenBook, read_token_book

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Door

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789"
CHAT = "/v1/chat/completions"


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    return open_door(body=BodyLimits(bytes=20_000, seconds=0.3))


@pytest.fixture
def locked(open_door: Callable[..., Door]) -> Door:
    return open_door(keys=TokenBook({"alice": digest(ALICE), "bob": digest(BOB)}))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8411", "127.0.0.1", "127.0.0.1:80", "localhost.evil:8411", ""]
)
def test_a_name_that_was_rebound_gets_nothing(door: Door, host: str) -> None:
    for path in ("/v1/models", "/health", "/metrics", "/openapi.json"):
        answer = door.http.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert "tiny" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1:8411", "localhost:8411", "LOCALHOST:8411", "[::1]:8411"])
def test_this_machines_names_are_known(door: Door, host: str) -> None:
    assert door.http.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:8411", "http://localhost:3000"])
def test_web_pages_are_refused(door: Door, origin: str) -> None:
    """Those of this address too: the gateway serves none."""
    answer = door.http.get("/v1/models", headers={"Origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_site_that_is_allowed_may_ask_from_a_browser(open_door: Callable[..., Door]) -> None:
    door = open_door(origins=("http://localhost:3000",))
    asking = {
        "Origin": "http://localhost:3000",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = door.http.options(CHAT, headers=asking)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "http://localhost:3000"
    answer = door.http.get("/v1/models", headers={"Origin": "http://localhost:3000"})
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert door.http.get("/v1/models", headers={"Origin": "http://localhost:3001"}).status_code == 403
    assert door.http.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", f"Bearer {ALICE}x", f"Bearer {ALICE[:-1]}", f"Basic {ALICE}", ALICE, "Bearer é",
        "Bearer sha256:" + "0" * 64, f"Bearer {digest(ALICE).hex()}", f"Bearer sha256:{digest(ALICE).hex()}",
        f"Bearer {ALICE} {BOB}", "Bearer " + "x" * 9000,
    ],
)  # fmt: skip
def test_keys_cannot_be_guessed(locked: Door, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("utf-8")}
    for path in ("/v1/models", "/metrics", "/nothing"):
        answer = locked.http.get(path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert ALICE not in json.dumps(locked.log())


def test_keys_let_in_and_name_the_log_line(locked: Door) -> None:
    for name, scheme, key in [("alice", "Bearer", ALICE), ("bob", "bearer", BOB)]:
        assert locked.http.get("/v1/models", headers={"Authorization": f"{scheme} {key}"}).status_code == 200
        assert locked.log()[-1]["key"] == name
    assert locked.http.get("/health").status_code == 200
    assert locked.http.get("/openapi.json").status_code == 200
    assert ALICE not in json.dumps(locked.log())


def test_a_key_does_not_meet_anothers_session(locked: Door) -> None:
    def cached(key: str) -> int:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 2}
        answer = locked.post(CHAT, body, Authorization=f"Bearer {key}")
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(ALICE) == 0
    assert cached(ALICE) > 0
    assert cached(BOB) == 0
    assert cached(ALICE) > 0


def test_key_files(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# comment\nalice {ALICE}\n\nbob sha256:{digest(BOB).hex()}\n")
    file.chmod(0o600)
    keys = read_token_book(file)
    assert keys.identify(f"Bearer {ALICE}") == "alice"
    assert keys.identify(f"Bearer {BOB}") == "bob"
    assert ALICE not in repr(keys)
    file.chmod(0o640)
    with pytest.raises(InsecureError, match="chmod 600"):
        read_token_book(file)


@pytest.mark.parametrize(
    "content",
    [
        "", "# nothing\n", f"alice {ALICE} more", "alice short", f"al/ice {ALICE}", f"alice {ALICE}\nalice {BOB}",
        f"alice {ALICE}\nbob {ALICE}", "alice sha256:abc", f"älice {ALICE}", f"alice {ALICE}\nbob sha256:{digest(ALICE).hex()}",
    ],
)  # fmt: skip
def test_key_files_that_are_refused_without_naming_a_key(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    file.chmod(0o600)
    with pytest.raises(InputError) as refused:
        read_token_book(file)
    assert ALICE not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "gateway.example"])  # noqa: S104
def test_listening_beyond_loopback_needs_keys_and_tls(host: str) -> None:
    for tls, keys in [(False, False), (True, False), (False, True)]:
        with pytest.raises(InsecureError):
            listen_policy(host, tls, keys)
    listen_policy(host, tls=True, keys=True)
    assert names_of(host, 8411) is None
    listen_policy("127.0.0.1", tls=False, keys=False)


BAD = {
    "deep": b'{"messages":' + b"[" * 9000 + b"]" * 9000 + b"}",
    "deep objects": b'{"a":' * 3000 + b"1" + b"}" * 3000,
    "nan": b'{"model":"tiny","prompt":"x","temperature":NaN}',
    "infinity": b'{"model":"tiny","prompt":"x","temperature":Infinity}',
    "huge number": b'{"model":"tiny","prompt":"x","temperature":1e999}',
    "huge integer": b'{"model":"tiny","prompt":"x","max_tokens":' + b"9" * 4000 + b"}",
    "minus zero": b'{"model":"tiny","prompt":"x","n":-0}',
    "no utf-8": b'{"model":"tiny","prompt":"\xff\xfe"}',
    "lone surrogate": b'{"model":"tiny","prompt":"\\ud800"}',
    "cut short": b'{"model":"tiny","prompt":"x"',
    "list": b"[1]",
    "string": b'"x"',
    "empty": b"",
    "null": b"null",
    "trailing": b'{"model":"tiny","prompt":"x"}{}',
    "key in place of field": b'{"model":"tiny","prompt":"x","":1}',
    "field of a kind": b'{"model":"tiny","prompt":{"a":1}}',
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/prefill", "/v1/tokenize", "/v1/detokenize"])
def test_bodies_that_are_none(door: Door, name: str, path: str) -> None:
    answer = door.http.post(path, content=BAD[name], headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_a_nul_and_odd_characters_are_text(door: Door) -> None:
    assert door.chat("\x00\u202e\N{GRINNING FACE}\u0301").status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_bodies_a_web_page_may_send_unasked_are_refused(door: Door, kind: str) -> None:
    answer = door.http.post(CHAT, content=b"{}", headers={"Content-Type": kind})
    assert answer.status_code == 415


def test_long_bodies_are_refused_announced_or_not(door: Door) -> None:
    assert door.chat("x" * 30_000).status_code == 413
    pieces = (b"x" * 1000 for _ in range(30))
    answer = door.http.post(CHAT, content=pieces, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_a_body_that_does_not_come_is_not_waited_for(open_door: Callable[..., Door]) -> None:
    door = open_door(served=True, body=BodyLimits(seconds=0.3))
    with door.served() as (url, _):
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            kind = "Content-Type: application/json\r\nContent-Length: 100"
            connection.sendall(f'POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{kind}\r\n\r\n{{"a'.encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")


def test_methods_and_paths(door: Door) -> None:
    answer = door.http.get(CHAT)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert door.http.get("/v1/embeddings").status_code == 404
    assert door.http.post("/v1/responses", json={}).status_code == 404
    assert door.http.delete("/v1/models/tiny").status_code == 405


def test_an_error_of_ours_is_reported_without_its_message(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("MYPRIVATEWORDS")

    monkeypatch.setattr(type(door.gateway.tokenizer), "render", broken)
    answer = door.chat("MYPRIVATEWORDS")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    assert "MYPRIVATEWORDS" not in answer.text + json.dumps(door.log())
    assert [line["error"] for line in door.log() if line["event"] == "failed"] == ["KeyError"]


def test_an_error_while_generating_leaves_the_gateway_working(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = door.chat(temperature=0).json()["choices"]

    def broken(*_: Any) -> None:
        raise KeyError("MYPRIVATEWORDS")

    with monkeypatch.context() as broken_sampler:
        broken_sampler.setattr("cutlayer.client.sampling.Sampler.choose", broken)
        for stream in (False, True):
            answer = door.chat(stream=stream)
            assert answer.status_code == 500
            assert "MYPRIVATEWORDS" not in answer.text + json.dumps(door.log())
    assert door.chat(temperature=0).json()["choices"] == expected
    assert door.gateway.pool.in_use == 0
