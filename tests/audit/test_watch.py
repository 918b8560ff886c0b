"""What the watcher says the server reads, against what was said."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cutlayer.attacks.attack import build_attack
from cutlayer.audit.held import Held
from cutlayer.audit.origins import origins_of
from cutlayer.audit.scene import Scene
from cutlayer.audit.watch import Watcher
from cutlayer.client.connect import Client
from cutlayer.errors import InputError, UnknownNameError
from cutlayer.text.tokenizer import Message, Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.audit.view import View

QUESTION = "Ada owes 4711."
NEXT = "Ada owes 12 crowns."
TEMPLATE = 2
"""``<user>`` and ``<assistant>``; every character is a token besides."""


@pytest.fixture
def watched(bench: Any) -> Callable[..., Any]:
    """A connected client with its watcher."""

    @contextmanager
    def connected(
        attack: str = "search", connect: Any = None, **options: Any
    ) -> Iterator[tuple[Client, Held, Watcher]]:
        held = Held(connect or bench.server().connect)
        with Client(held, bench.options(**options)) as client, Watcher(client, held, attack) as watcher:
            yield client, held, watcher

    return connected


def said(view: View, origin: str) -> str:
    return "".join(seen.text for seen in view.tokens if seen.origin == origin)


def heard(view: View, origin: str) -> str:
    return "".join(seen.guess_text for seen in view.tokens if seen.origin == origin)


def test_without_a_defence_everything_is_read(watched: Any) -> None:
    views: list[View] = []
    with watched() as (client, _, watcher):
        result = watcher.ask(QUESTION, on_view=views.append, max_tokens=8, ignore_eos=True).result()
        view = watcher.settle()
        assert result.text == client.generate(QUESTION, max_tokens=8, ignore_eos=True).result().text
    assert view.final
    assert view.share("prompt") == (len(QUESTION), len(QUESTION))
    assert view.share("answer") == (7, 7)  # the eighth token never crosses
    assert view.share("template") == (TEMPLATE, TEMPLATE)
    assert said(view, "prompt") == heard(view, "prompt") == QUESTION
    assert [seen.position for seen in view.tokens] == list(range(TEMPLATE + len(QUESTION) + 7))
    assert not any(seen.provisional for seen in view.tokens)
    assert views[-1] == view
    assert [one.final for one in views].count(True) == 1


def test_under_noise_right_and_wrong_are_told_apart(watched: Any) -> None:
    with watched(defence="gaussian:sigma=20") as (_, _, watcher):
        watcher.ask(QUESTION, max_tokens=4).result()
        view = watcher.settle()
    read, of = view.share("prompt")
    assert said(view, "prompt") == QUESTION
    assert heard(view, "prompt") != QUESTION
    assert read == sum(seen.text == seen.guess_text for seen in view.tokens if seen.origin == "prompt") < of
    assert all(seen.right == (seen.text == seen.guess_text) for seen in view.tokens)
    assert all(0 <= seen.confidence <= 1 for seen in view.tokens)


def test_the_quick_attack_paints_first_and_is_marked(watched: Any) -> None:
    views: list[View] = []
    with watched() as (_, _, watcher):
        watcher.ask(QUESTION, on_view=views.append, max_tokens=2).result()
        watcher.settle()
    first = next(view for view in views if view.tokens)
    assert all(seen.provisional for seen in first.tokens)
    assert not first.final


@pytest.mark.parametrize("earlier", ["asked", "unwatched"])
def test_a_question_that_begins_like_the_last_one(watched: Any, earlier: str) -> None:
    """Its first rows are not sent again, and what the server held beyond them belongs to other tokens."""
    with watched() as (client, held, watcher):
        if earlier == "asked":
            watcher.ask(QUESTION, max_tokens=6, ignore_eos=True).result()
            watcher.settle()
        else:
            client.generate(QUESTION, max_tokens=6, ignore_eos=True).result()
        before = held.sent.bytes
        watcher.ask(NEXT, max_tokens=2).result()
        view = watcher.settle()
        assert held.sent.bytes - before < len(NEXT) * 32 * 4
    assert heard(view, "prompt") == NEXT
    assert view.share("prompt") == (len(NEXT), len(NEXT))


def test_a_conversation_counts_earlier_answers_as_answers(watched: Any) -> None:
    conversation = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Go"),
    ]
    with watched() as (_, _, watcher):
        watcher.ask(conversation, max_tokens=3, ignore_eos=True).result()
        view = watcher.settle()
    assert said(view, "prompt") == "Be brief.HiGo"
    assert said(view, "answer").startswith("Yes?")
    assert view.share("answer").of == len("Yes?") + 2


def test_a_raw_prompt_is_all_the_users(watched: Any) -> None:
    with watched() as (_, _, watcher):
        watcher.ask(QUESTION, raw=True, max_tokens=1).result()
        view = watcher.settle()
    assert said(view, "prompt") == QUESTION
    assert view.share("template").of == 0


def test_held_rows_are_what_the_head_computed_also_after_a_broken_line(bench: Any) -> None:
    class Breaking:
        def __init__(self) -> None:
            self.left = 9
            self.server = bench.server()

        def __call__(self) -> Any:
            inner = self.server.connect()
            real = inner.recv

            def recv(timeout_s: float | None = None) -> bytes:
                self.left -= 1
                if self.left == 0:
                    inner.break_connection()
                return real(timeout_s)

            inner.recv = recv  # type: ignore[method-assign]
            return inner

    held = Held(Breaking())
    with Client(held, bench.options()) as client:
        result = client.generate(QUESTION, max_tokens=12, ignore_eos=True).result()
        ids = [*result.prompt_token_ids, *result.token_ids[:-1]]
        expected = Scene(client.directory, client.cut, client.parts).hidden(torch.tensor([ids]))[0]  # [T, D]
        rows = client.codec.decode(b"".join(held.rows()), client.info.hidden_size)
    assert result.resumes == 1
    torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-4)
    assert held.frames == ()  # messages are not kept
    assert held.sent.frames > 12


def test_rows_wait_for_the_first_step_of_a_prompt(bench: Any) -> None:
    held = Held(bench.server().connect)
    with Client(held, bench.options()) as client:
        client.generate(QUESTION, max_tokens=1).result()
        assert len(held.rows()) == len(held.rows(after=held.steps - 1)) == TEMPLATE + len(QUESTION)
        assert held.rows(after=held.steps) == []


def test_a_failing_attack_is_reported_and_stops_no_answer(watched: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        card = build_attack("ridge").card

        def prepare(self, threat: Any, progress: Any) -> Any:
            return self

        def read(self, observation: Any) -> Any:
            raise ArithmeticError("singular")

    monkeypatch.setattr("cutlayer.audit.watch.build_attack", lambda spec: Failing())
    with watched() as (_, _, watcher):
        for _ in range(2):  # the second question is told as well
            assert watcher.ask(QUESTION, max_tokens=3, ignore_eos=True).result().steps == 2
            view = watcher.settle()
            assert view.final
            assert view.problem == "ArithmeticError: singular"
            assert view.share("prompt") == (0, 0)


def test_a_refused_prompt_leaves_the_last_view_alone(watched: Any) -> None:
    with watched() as (_, _, watcher):
        with pytest.raises(RuntimeError, match="nothing was asked"):
            watcher.settle()
        watcher.ask(QUESTION, max_tokens=1).result()
        with pytest.raises(InputError):
            watcher.ask(QUESTION, max_tokens=0)
        assert watcher.settle().share("prompt").of == len(QUESTION)


def test_an_unknown_attack_is_refused_at_once(watched: Any) -> None:
    with pytest.raises(UnknownNameError, match="search"), watched(attack="magic"):
        pass


def test_origins_of_a_template_that_rewrites_earlier_messages_are_not_guessed(
    tiny_with_text: Callable[[str], Path],
) -> None:
    tokenizer = Tokenizer(tiny_with_text("llama"))
    content = "{{ m.content if loop.last else m.content | upper }}"
    tokenizer._tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>" + content + "{% endfor %}<assistant>"
    conversation = [Message("user", "ab"), Message("user", "cd")]
    ids = tokenizer.render(conversation)
    assert origins_of(tokenizer, conversation, ids) == [
        "template",
        "prompt",
        "prompt",
        "template",
        "prompt",
        "prompt",
        "template",
    ]
