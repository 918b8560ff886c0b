"""Key, base model and engine must belong together, and the engine's address must be a protected one."""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from tests.gateway.upstream.fake_engine import NAMES, FakeEngine

from cutlayer.client.sampling import Sampling
from cutlayer.errors import (
    ConnectionLostError,
    InputError,
    InsecureError,
    KeyFileError,
    UnknownNameError,
    UpstreamError,
)
from cutlayer.gateway.upstream.obfuscated import obfuscated
from cutlayer.obfuscation.keys import create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Obfuscated, Upstream

V = 101


@pytest.fixture
def tiny_export(obfuscate: Callable[[Path], Obfuscated], tiny_with_text: Callable[[str], Path]) -> Obfuscated:
    return obfuscate(tiny_with_text("llama"))


def test_the_key_of_another_export_is_refused(tiny_export: Obfuscated) -> None:
    other = create_owner_key(tiny_export.base, choose(tiny_export.base)).client()
    for kind in NAMES:
        with FakeEngine(kind, tiny_export.directory, tiny_export.name) as engine:
            with pytest.raises(KeyFileError, match=tiny_export.key.identity.key_id):
                obfuscated(kind, engine.url, other, tiny_export.base)
            assert not engine.bodies
    with (
        FakeEngine("vllm", tiny_export.directory, "any-name") as engine,  # told by the marker in its directory
        pytest.raises(KeyFileError, match=tiny_export.key.identity.key_id),
    ):
        obfuscated("vllm", engine.url, other, tiny_export.base)


def test_another_base_is_refused(tiny_export: Obfuscated, tiny_with_text: Callable[[str], Path]) -> None:
    with pytest.raises(KeyFileError, match="another model"):
        obfuscated("vllm", "http://127.0.0.1:9", tiny_export.key, tiny_with_text("qwen3"))


def test_another_vocabulary_is_refused(tiny_export: Obfuscated) -> None:
    with FakeEngine("llamacpp", tiny_export.directory, tiny_export.name) as engine:
        engine.speech.vocabulary = V + 1
        with pytest.raises(KeyFileError, match="102"):
            obfuscated("llamacpp", engine.url, tiny_export.key, tiny_export.base)


def test_another_engine_is_refused(tiny_export: Obfuscated) -> None:
    with (
        FakeEngine("vllm", tiny_export.directory, tiny_export.name) as engine,
        pytest.raises(UpstreamError, match="404"),
    ):
        obfuscated("llamacpp", engine.url, tiny_export.key, tiny_export.base)
    with pytest.raises(UnknownNameError, match="vllm, llamacpp, sglang"):
        obfuscated("triton", "http://127.0.0.1:9", tiny_export.key, tiny_export.base)
    with pytest.raises(ConnectionLostError):
        obfuscated("vllm", "http://127.0.0.1:9", tiny_export.key, tiny_export.base)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://gpu.example:8000", InsecureError), ("http://192.0.2.1", InsecureError), ("ftp://127.0.0.1", InputError),
        ("127.0.0.1:8000", InputError), ("https://", InputError), ("https://me:secret@gpu.example", InputError),
        ("http://127.0.0.1:99999", InputError), ("https://gpu.example/v1?x=1", InputError),
        ("https://gpu.example/a b", InputError),
        ("http://[::1", InputError), ("https://gpu.example/\r\nX: y", InputError),
    ],
)  # fmt: skip
def test_urls_that_are_none_or_unprotected(tiny_export: Obfuscated, url: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        obfuscated("vllm", url, tiny_export.key, tiny_export.base)
    assert "secret" not in str(raised.value)


def test_a_token_is_sent_and_one_that_is_refused_is_said_at_the_start(
    tiny_export: Obfuscated, open_upstream: Callable[..., Upstream]
) -> None:
    upstream = open_upstream(token=Secret(b"bearer-of-the-engine"))
    assert upstream.door.chat("hello").status_code == 200
    assert upstream.engine.headers[-1]["Authorization"] == "Bearer bearer-of-the-engine"
    upstream.engine.speech.pages = dict  # type: ignore[method-assign]
    with pytest.raises(UpstreamError, match="404"):
        obfuscated("vllm", upstream.engine.url, tiny_export.key, tiny_export.base)


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def presented(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def test_over_tls_answers_come_and_are_broken_off(
    open_upstream: Callable[..., Upstream], authority: trustme.CA, presented: ssl.SSLContext
) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    upstream = open_upstream(presents=presented, tls=trusting)
    assert upstream.door.chat("hello", max_tokens=3).status_code == 200
    upstream.engine.go_on.clear()
    options: dict[str, Any] = {"stop": (), "logprobs": None, "prompt_logprobs": False, "mask": None}
    sampling = Sampling(logit_bias={2: -100.0})
    answer = upstream.door.gateway.session.generate([40, 41], max_tokens=90, sampling=sampling, **options)
    pieces = iter(answer)
    next(pieces), next(pieces)
    reader = threading.Thread(target=lambda: list(pieces))
    reader.start()
    answer.cancel()
    reader.join(30)
    assert not reader.is_alive()
    assert answer.finish_reason == "cancelled"
    upstream.engine.go_on.set()
    assert upstream.engine.left.wait(30)


def test_certificates_are_checked(tiny_export: Obfuscated, presented: ssl.SSLContext) -> None:
    with (
        FakeEngine("vllm", tiny_export.directory, tiny_export.name, presented) as engine,
        pytest.raises(ConnectionLostError),
    ):
        obfuscated("vllm", engine.url, tiny_export.key, tiny_export.base)
