"""Several sessions on one set of weights, log-probabilities, and cancelling: the tiny model against itself unsplit."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from cutlayer.client import decoder as decoding
from cutlayer.client.connect import Client, Options
from cutlayer.client.remote import Patience
from cutlayer.client.sampling import Sampling
from cutlayer.errors import ConnectionLostError, InputError
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TOLERANCE = 1e-3
PROMPT = [7 + i * 13 % 90 for i in range(40)]


@pytest.fixture(scope="module")
def server(tiny_with_text: Callable[[str], Path]) -> Iterator[LocalServer]:
    with LocalServer(build_service(tiny_with_text("llama"), "tiny", "2:-2", "float32")) as server:
        yield server


@pytest.fixture
def client(server: LocalServer, tiny_with_text: Callable[[str], Path]) -> Iterator[Client]:
    with Client(server.connect, Options(model=str(tiny_with_text("llama")))) as client:
        yield client


@pytest.fixture(scope="module")
def unsplit(tiny_with_text: Callable[[str], Path]) -> Callable[[list[int]], torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(tiny_with_text("llama"), dtype=torch.float32).eval()

    def logprobs(ids: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].log_softmax(-1)  # [T, V]

    return logprobs


@pytest.mark.parametrize("chunk", [1, 3, 39, 40, 128])
def test_prompt_and_answer_logprobs_are_the_unsplit_models(
    client: Client, unsplit: Callable[[list[int]], torch.Tensor], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", chunk)
    client.generate(PROMPT[:20], max_tokens=2).result()  # held positions give no logits; they must be sent again
    generation = client.generate(
        PROMPT,
        max_tokens=6,
        logprobs=3,
        prompt_logprobs=True,
        ignore_eos=True,
        sampling=Sampling(temperature=1.5, seed=3),
    )
    pieces = list(generation)
    whole = [*PROMPT, *generation.token_ids]
    expected = unsplit(whole)
    entries = [*generation.prompt_logprobs, *(piece.logprobs for piece in pieces)]
    assert generation.prompt_logprobs[0] is None
    assert generation.reused == 0
    for at, entry in list(enumerate(entries))[1:]:
        assert entry is not None
        assert entry.token == whole[at]
        assert entry.logprob == pytest.approx(float(expected[at - 1, whole[at]]), abs=TOLERANCE)
        top = expected[at - 1].topk(3)
        assert [token for token, _ in entry.top] == top.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(top.values.tolist(), abs=TOLERANCE)


def test_a_prompt_can_be_scored_without_an_answer(client: Client) -> None:
    generation = client.generate(PROMPT, max_tokens=0, logprobs=0, prompt_logprobs=True)
    assert list(generation) == []
    assert generation.finish_reason == "length"
    assert len(generation.prompt_logprobs) == len(PROMPT)
    with pytest.raises(InputError, match="at least 1"):
        client.generate(PROMPT, max_tokens=0)


def test_another_session_shares_weights_and_nothing_else(client: Client, server: LocalServer) -> None:
    before = len(server.service.table)
    with client.another() as other:
        assert other.parts is client.parts
        assert len(server.service.table) == before + 1
        client.generate(PROMPT, max_tokens=2).result()
        assert list(other.held) == []
        assert client.released >= len(PROMPT)
        assert other.released == 0
    deadline = time.monotonic() + 30
    while len(server.service.table) > before and time.monotonic() < deadline:  # it takes leave without waiting
        time.sleep(0.01)
    assert len(server.service.table) == before


def test_sessions_of_one_defence_have_noise_of_their_own(
    server: LocalServer, tiny_with_text: Callable[[str], Path]
) -> None:
    options = Options(model=str(tiny_with_text("llama")), defence="gaussian:sigma=3")
    with Client(server.connect, options) as one, one.another() as other:
        ids, positions = torch.tensor([PROMPT]), decoding.History().extend(0, PROMPT)
        hidden = one.parts.head(ids, one.parts.head.new_cache())[0]  # [T, D]
        assert not torch.allclose(one.defence.release(hidden, positions), other.defence.release(hidden, positions))


def test_sessions_at_once_answer_as_they_do_alone(client: Client) -> None:
    prompts = [[(seed * 31 + i * 7) % 90 + 6 for i in range(30)] for seed in range(4)]
    alone = [client.generate(prompt, max_tokens=20, ignore_eos=True).result().token_ids for prompt in prompts]
    sessions = [client.another() for _ in prompts]
    with ThreadPoolExecutor(len(prompts)) as threads:
        answers = threads.map(
            lambda pair: pair[0].generate(pair[1], max_tokens=20, ignore_eos=True).result().token_ids,
            zip(sessions, prompts, strict=True),
        )
        assert list(answers) == alone
    for session in sessions:
        session.close()


def test_cancelling_within_a_prompt_keeps_what_was_sent_and_the_session(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PREFILL_CHUNK", 4)
    expected = client.another().generate(PROMPT, max_tokens=5, ignore_eos=True).result().token_ids
    sent: list[int] = []
    generation = client.generate(PROMPT, max_tokens=5, ignore_eos=True)
    real = client._remote.send

    def send(base: int, hidden: torch.Tensor, *backs: object) -> None:
        real(base, hidden, *backs)
        sent.append(len(hidden))
        if len(sent) == 3:
            generation.cancel()

    monkeypatch.setattr(client._remote, "send", send)
    assert list(generation) == []
    assert generation.finish_reason == "cancelled"
    assert sent == [4, 4, 4]
    assert list(client.held) == PROMPT[:12]
    again = client.generate(PROMPT, max_tokens=5, ignore_eos=True)
    assert again.result().token_ids == expected
    assert again.reused == 12


def test_cancelling_while_the_server_is_away_does_not_wait_for_it(
    server: LocalServer, tiny_with_text: Callable[[str], Path]
) -> None:
    """The pauses between attempts would add up to a minute; a cancelled answer must not sit through them."""
    away = threading.Event()
    tried = threading.Event()

    def connect() -> Any:
        if away.is_set():
            tried.set()
            raise ConnectionLostError("nobody there")
        transport = server.connect()
        real = transport.send

        def send(data: bytes) -> None:
            if away.is_set():
                transport.break_connection()
            real(data)

        transport.send = send  # type: ignore[method-assign]
        return transport

    options = Options(model=str(tiny_with_text("llama")), patience=Patience(recover_s=600))
    with Client(connect, options) as client:
        expected = client.generate(PROMPT, max_tokens=4, ignore_eos=True).result().token_ids
        away.set()
        generation = client.generate([*PROMPT, 9], max_tokens=4, ignore_eos=True)
        ended = threading.Thread(target=lambda: list(generation))
        ended.start()
        assert tried.wait(30)
        generation.cancel()
        ended.join(30)
        assert not ended.is_alive()
        assert generation.finish_reason == "cancelled"
        away.clear()
        assert client.generate(PROMPT, max_tokens=4, ignore_eos=True).result().token_ids == expected


def test_a_probe_asks_over_a_connection_of_its_own(client: Client) -> None:
    assert client.probe().fingerprint == client.info.fingerprint
    client.generate(PROMPT, max_tokens=1).result()
