"""Answers with guesses are the answers without, whatever is guessed, and whatever happens on the way."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

import cutlayer.client.connect as connecting
from cutlayer.audit.tap import Tap
from cutlayer.client.connect import Client, Options
from cutlayer.client.sampling import Sampling
from cutlayer.client.speculation.draft import ROOT, Draft
from cutlayer.errors import InputError
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cutlayer.client.speculation.speculator import Verified
    from cutlayer.wire.memory import MemoryTransport

PROMPT = "Ann owes Bob twelve crowns."
TOKENS = 40
V = 50


class Knowing:
    """Guesses trees around the true answer, some of them wrong on purpose, and checks what it is shown.

    Args:
        truth: prompt and answer.
        seed: of where it errs.
        adaptive: whether drafts may be cut.
    """

    wants_prompt = True

    def __init__(self, truth: Sequence[int], seed: int = 0, adaptive: bool = False) -> None:
        self._truth = list(truth)
        self._chance = random.Random(seed)
        self.adaptive = adaptive
        self.shown: list[Verified] = []

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        """A chain of the truth that may end in an error, and a wrong sibling at every node."""
        following = self._truth[len(ids) :][: self._chance.randrange(1, 12)]
        tokens: list[int] = []
        parents: list[int] = []
        node = ROOT
        for token in following:
            if len(tokens) + 2 > most:
                break
            tokens += [(token + 1) % V, token]
            parents += [node, node]
            node = len(tokens) - 1
            if self._chance.random() < 0.2:
                tokens[-1] = (token + 2) % V
        return Draft(tuple(tokens), tuple(parents), (0.5,) * len(tokens))

    def observe(self, seen: Verified) -> None:
        self.shown.append(seen)

    def close(self) -> None: ...


class Copying(Knowing):
    """Guesses chains, now and then as long as there is room."""

    def draft(self, ids: Sequence[int], most: int) -> Draft:
        following = self._truth[len(ids) :][: self._chance.choice([1, 4, most])]
        if following and self._chance.random() < 0.5:
            following[-1] = (following[-1] + 1) % V
        return Draft.chain(following, [0.5] * len(following))


@pytest.fixture(params=["llama", "gemma2", "gpt_neox"])
def directory(request: pytest.FixtureRequest, tiny_with_text: Callable[[str], Path]) -> Path:
    return tiny_with_text(request.param)


@pytest.fixture
def server(directory: Path) -> Iterator[LocalServer]:
    with LocalServer(build_service(directory, "tiny", "2:-2", "float32")) as running:
        yield running


@pytest.fixture
def ask(
    server: LocalServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[Client, Knowing | None]]]:
    """Opens a client that guesses as told, or not at all."""
    clients: list[Client] = []

    def opened(knowing: Knowing | None = None, **options: object) -> Client:
        monkeypatch.setattr(connecting, "build_speculator", lambda spec, trusted: knowing)
        chosen = Options(model=str(directory), speculate="off" if knowing is None else "auto", **options)
        clients.append(Client(server.connect, chosen))
        return clients[-1]

    yield opened
    for client in clients:
        client.close()


def truth_of(ask: Callable[..., Client], **options: object) -> tuple[list[int], list[int]]:
    result = ask().generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True, **options).result()
    assert result.steps == TOKENS - 1
    return result.prompt_token_ids, result.token_ids


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_guesses_change_nothing_but_the_number_of_round_trips(ask: Callable[..., Client], temperature: float) -> None:
    sampling = Sampling(temperature=temperature, seed=3, repetition_penalty=1.2)
    prompt, answer = truth_of(ask, sampling=sampling)
    knowing = Knowing([*prompt, *answer])
    result = (
        ask(knowing)
        .generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True, sampling=sampling, logprobs=2)
        .result()
    )
    assert result.token_ids == answer
    assert result.steps < 0.6 * (TOKENS - 1)
    assert result.guessed > 2 * result.steps


def test_what_the_speculator_is_shown_is_what_the_model_said(ask: Callable[..., Client]) -> None:
    """Logits of every row, wrong guesses included, are those of its own path run alone."""
    prompt, answer = truth_of(ask)
    knowing = Knowing([*prompt, *answer], seed=1)
    ask(knowing).generate(PROMPT, max_tokens=12, raw=True, ignore_eos=True).result()
    plain = ask()
    said = [*prompt]
    for seen in knowing.shown:
        for row in range(len(seen.tokens)):
            path, at = [], row
            while at >= 0:
                path.append(seen.tokens[at])
                at = seen.parents[at]
            plain.forget()
            logits = plain._decoder.extend([*said[: seen.base], *path[::-1]])
            assert (logits - seen.logits[row]).abs().max() < 1e-4
        said[seen.base :] = [seen.tokens[row] for row in seen.kept]


@pytest.mark.parametrize("seed", range(4))
def test_a_lost_connection_changes_nothing(
    ask: Callable[..., Client], server: LocalServer, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, answer = truth_of(ask)
    client = ask(Knowing([*prompt, *answer], seed=seed))
    transports: list[MemoryTransport] = []
    connect = client._remote._connect
    client._remote._connect = lambda: transports.append(connect()) or transports[-1]
    chance = random.Random(seed)
    generation = client.generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True)
    for _ in generation:
        if chance.random() < 0.3:
            client._remote._transport.break_connection()
    result = generation.result()
    assert result.token_ids == answer
    assert result.resumes > 0


def test_a_conversation_goes_on_from_what_is_held(ask: Callable[..., Client]) -> None:
    prompt, answer = truth_of(ask)
    longer = [*prompt, *answer[:20], 7, 8, 9]
    expected = ask().generate(longer, max_tokens=10, ignore_eos=True).result().token_ids
    client = ask(Knowing([*prompt, *answer]))
    generation = client.generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True)
    for number, _ in enumerate(generation):
        if number == 22:
            generation.close()
            break
    going_on = client.generate(longer, max_tokens=10, ignore_eos=True)
    assert going_on.result().token_ids == expected
    assert going_on.reused >= len(prompt) + 20


def test_the_answer_ends_where_the_session_is_full(ask: Callable[..., Client], directory: Path) -> None:
    prompt, answer = truth_of(ask)
    client = ask(Knowing([*prompt, *answer]))
    client._remote._session.max_positions = len(prompt) + 9
    result = client.generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True).result()
    assert (result.token_ids, result.finish_reason) == (answer[:10], "length")


def test_stop_strings_end_an_answer_in_the_middle_of_a_trip(ask: Callable[..., Client]) -> None:
    prompt, answer = truth_of(ask)
    text = ask().tokenizer.decode(answer)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    expected = ask().generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True, stop=[stop]).result()
    found = ask(Knowing([*prompt, *answer])).generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True, stop=[stop])
    assert (found.result().text, found.result().token_ids) == (expected.text, expected.token_ids)


@pytest.mark.parametrize("shape", ["tree", "chain"])
def test_padded_steps_are_all_of_one_size(
    ask: Callable[..., Client], server: LocalServer, monkeypatch: pytest.MonkeyPatch, shape: str
) -> None:
    """Also in bytes, whatever was right in the step before; the first has nothing to keep."""
    prompt, answer = truth_of(ask)
    knowing = Knowing([*prompt, *answer]) if shape == "tree" else Copying([*prompt, *answer])
    tap = Tap(server.connect)
    monkeypatch.setattr(server, "connect", tap)
    client = ask(knowing, pad_drafts=9)
    generation = client.generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True)
    assert generation.result().token_ids == answer
    assert {step.sent for step in generation.timings[1:]} == {9}
    assert len({len(seen.kept) for seen in knowing.shown[1:]}) > 1
    messages = [(type(frames.decode(message.data).header), len(message.data)) for message in tap.frames]
    steps, results = ([size for kind, size in messages if kind is wanted] for wanted in (frames.Step, frames.Result))
    _prefill, first, *later = steps
    assert set(later) == {first + 2}
    assert len(set(results[1:])) == 1


def test_answers_stay_the_same_whatever_is_cut(ask: Callable[..., Client]) -> None:
    prompt, answer = truth_of(ask)
    knowing = Knowing([*prompt, *answer], adaptive=True)
    assert ask(knowing).generate(PROMPT, max_tokens=TOKENS, raw=True, ignore_eos=True).result().token_ids == answer


def test_nothing_is_guessed_at_a_server_nearby_unless_it_is_asked_for(
    server: LocalServer, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutlayer.client.connect._LEAST_WAIT_S", 60.0)  # a busy machine answers late, but not that late
    for speculate, guesses in ((None, False), ("lookup", True)):
        with Client(server.connect, Options(model=str(directory), speculate=speculate)) as client:
            result = client.generate("ab ab ab ab ab ab ab ab", max_tokens=30, raw=True, ignore_eos=True).result()
            assert bool(result.guessed) is guesses


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pad_drafts": 65}, "at most 64 rows"),
        ({"pad_drafts": -1}, "at most 64 rows"),
        ({"pad_drafts": 8, "speculate": "off"}, "no drafts to pad"),
        ({"speculate": "clairvoyance"}, "unknown name 'clairvoyance'"),
    ],
)
def test_impossible_settings_are_refused(
    server: LocalServer, directory: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        Client(server.connect, Options(model=str(directory), **options))


def test_a_defence_turns_guessing_off_unless_it_is_asked_for(server: LocalServer, directory: Path) -> None:
    for speculate, guesses in ((None, False), ("lookup", True)):
        options = Options(model=str(directory), defence="gaussian:sigma=0.01", speculate=speculate)
        with Client(server.connect, options) as client:
            client.generate("ab ab ab ab ab ab ab ab", max_tokens=30, raw=True, ignore_eos=True).result()
            assert (client._drafting is not None) is guesses
