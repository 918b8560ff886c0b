"""The server's view of a conversation, while it is going on.

    held = Held(dialler(url, keys=keys))
    with Client(held) as client, Watcher(client, held) as watcher:
        answer = watcher.ask("What is the capital of France?", on_view=show)
        for piece in answer:
            print(piece.text, end="")
        view = watcher.settle()

An attack reads what has crossed so far, in a thread beside the generation: a ridge regression paints each new position at
once, and the strong attack, `search` unless told otherwise, follows. It is given what a server has that knows the model and
the defence: the rows it was sent, the public weights, and random token sequences of its own. The truth never reaches it;
guesses are compared with it here, afterwards.

Footguns: while an answer is watched, ask nothing else of its client. Reading shares this machine's cores
with the client's own layers and slows the answer down.

Notation: T positions, D hidden size, V vocabulary, S sequences.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import torch

from cutlayer.attacks.attack import Observation, build_attack, prepare
from cutlayer.attacks.prior import Prior
from cutlayer.audit.origins import origins_of, origins_of_text
from cutlayer.audit.scene import Scene
from cutlayer.audit.view import Seen, View
from cutlayer.prefix import common_length
from cutlayer.text.tokenizer import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from cutlayer.attacks.attack import Attack, Reader
    from cutlayer.audit.held import Held
    from cutlayer.audit.origins import Origin
    from cutlayer.client.connect import Client
    from cutlayer.client.generation import Generation

STRONG: Final = "search"
_QUICK: Final = "ridge"
"""Reads every row by itself, so that new ones can be read without the old."""
_GROWTH: Final = 4
"""The strong attack starts over when a quarter more has crossed than it has read: all its runs during an answer together then
cost at most five times the last."""
_OWN_SEQUENCES: Final = 128
_OWN_LENGTH: Final = 48


class Watcher:
    """Reads along with one client.

    Args:
        client: connected through `held`.
        held: what the server holds of it.
        attack: specification of the strong attack.

    Raises:
        UnknownNameError: no such attack.
        InputError: its options are wrong.
    """

    def __init__(self, client: Client, held: Held, attack: str = STRONG) -> None:
        self.attack = attack
        self._client = client
        self._held = held
        self._strong = build_attack(attack)
        self._scene = Scene(client.directory, client.cut, client.parts, client.defence.describe(), client.codec.name)
        self._pieces: dict[int, str] = {}
        self._question: _Question | None = None
        self._changed = False
        self._stopped = False
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)
        held.on_change = self._notify
        self._thread.start()

    def __enter__(self) -> Watcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(
        self,
        prompt: str | Sequence[Message],
        *,
        on_view: Callable[[View], None] = lambda view: None,
        raw: bool = False,
        **options: Any,
    ) -> Generation:
        """Answer a prompt as `Client.generate` does, watched.

        Args:
            prompt: a question or a conversation.
            on_view: called with every new view, in the watcher's thread, until the next question.
            raw: as for `Client.generate`.
            options: more of them.

        Raises:
            InputError: as `Client.generate`.
        """
        generation = self._client.generate(prompt, raw=raw, speculate=False, **options)
        ids = self._client.encode(prompt, raw=raw)
        tokenizer = self._client.tokenizer
        if raw:
            origins = origins_of_text(tokenizer, ids)
        else:
            messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
            origins = origins_of(tokenizer, messages, ids)
        with self._wake:
            self._question = _Question(ids, origins, generation, on_view, self._held.steps)
            self._changed = True
            self._wake.notify_all()
        return generation

    def finish(self) -> None:
        """Say that the present answer has ended; once everything is read, the final view follows."""
        with self._wake:
            if self._question is not None:
                self._question.finished = True
            self._changed = True
            self._wake.notify_all()

    def settle(self) -> View:
        """`finish`, and wait for the final view.

        Raises:
            RuntimeError: nothing was asked, or the watcher was closed.
        """
        self.finish()
        with self._wake:
            question = self._question
            if question is None:
                raise RuntimeError("nothing was asked through this watcher")
            self._wake.wait_for(lambda: question.final is not None or self._stopped)
        if question.final is None:
            raise RuntimeError("the watcher was closed")
        return question.final

    def close(self) -> None:
        """Stop reading, after the attack's present run."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()
        self._thread.join()

    def _notify(self) -> None:
        with self._wake:
            self._changed = True
            self._wake.notify_all()

    def _run(self) -> None:
        try:
            self._read_along(self._prepare(build_attack(_QUICK)), self._prepare(self._strong))
        except Exception as error:
            # Whatever an attack dies of, the answer goes on; the view says that nobody reads any more.
            self._give_up(f"{type(error).__name__}: {error}")

    def _prepare(self, attack: Attack) -> Reading:
        scene = self._scene
        generator = torch.Generator().manual_seed(0)
        vocabulary = scene.head.embedding().shape[0]
        own = torch.randint(vocabulary, (_OWN_SEQUENCES, _OWN_LENGTH), generator=generator)  # [S, T]
        prior = Prior.load(scene.directory) if "prior" in attack.card.needs else None
        auxiliary = scene.auxiliary(own) if "auxiliary" in attack.card.needs else None
        return Reading(prepare(attack, scene.threat(auxiliary, prior)), self._observe)

    def _observe(self, rows: Sequence[bytes]) -> Observation:
        released = self._client.codec.decode(b"".join(rows), self._client.info.hidden_size)  # [T, D]
        return Observation(released.float()[None])  # [1, T, D]

    def _read_along(self, quick: Reading, strong: Reading) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._changed or self._stopped)
                if self._stopped:
                    return
                self._changed = False
                question = self._open()
                if question is None:
                    continue
                rows, finished = self._held.rows(question.asked_at), question.finished
            if quick.follow(rows):
                quick.read_rest(rows)
            unread = strong.follow(rows)
            self._publish(question, quick, strong, final=finished and not unread)
            if unread and (finished or unread * _GROWTH >= len(strong)):
                strong.read_all(rows)
                self._publish(question, quick, strong, final=finished)

    def _publish(self, question: _Question, quick: Reading, strong: Reading, *, final: bool) -> None:
        ids = question.ids()
        tokens = []
        for position in range(len(quick)):
            best = strong if position < len(strong) else quick
            guess = best.tokens[position]
            seen = Seen(
                position=position,
                text=self._piece(ids[position]),
                guess_text=self._piece(guess),
                confidence=best.confidence[position],
                right=guess == ids[position],
                origin=question.origins[position] if position < len(question.origins) else "answer",
                provisional=best is quick,
            )
            tokens.append(seen)
        self._tell(question, View(tokens=tokens, attack=self.attack, final=final))

    def _tell(self, question: _Question, view: View) -> None:
        with self._wake:
            current = question is self._question and question.final is None
            if current and view.final:
                question.final = view
                self._wake.notify_all()
            question.last = view
        if current:
            question.on_view(view)

    def _give_up(self, problem: str) -> None:
        """Tell it to whoever asks, until the end."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopped or self._open() is not None)
                question = self._open()
                if self._stopped or question is None:
                    return
            tokens = question.last.tokens if question.last is not None else []
            self._tell(question, View(tokens=tokens, attack=self.attack, final=True, problem=problem))

    def _open(self) -> _Question | None:
        """The question that has no final view yet."""
        question = self._question
        return question if question is not None and question.final is None else None

    def _piece(self, token: int) -> str:
        if token not in self._pieces:
            self._pieces[token] = self._client.tokenizer.pieces([token])[0]
        return self._pieces[token]


class Reading:
    """What one prepared attack made of the rows so far.

    Args:
        reader: the attack.
        observe: encoded rows → observation.
    """

    def __init__(self, reader: Reader, observe: Callable[[Sequence[bytes]], Observation]) -> None:
        self.tokens: list[int] = []
        self.confidence: list[float] = []
        self._reader = reader
        self._observe = observe
        self._rows: list[bytes] = []

    def __len__(self) -> int:
        return len(self._rows)

    def follow(self, rows: Sequence[bytes]) -> int:
        """Drop what was read of rows that have been replaced; how many are unread."""
        kept = common_length(self._rows, rows)
        del self._rows[kept:], self.tokens[kept:], self.confidence[kept:]
        return len(rows) - kept

    def read_rest(self, rows: Sequence[bytes]) -> None:
        """Read the rows that are new, without the others."""
        self._take(rows[len(self) :])

    def read_all(self, rows: Sequence[bytes]) -> None:
        """Read everything anew."""
        self.follow([])
        self._take(rows)

    def _take(self, rows: Sequence[bytes]) -> None:
        guess = self._reader.read(self._observe(rows))
        self._rows += rows
        self.tokens += guess.tokens.tolist()
        self.confidence += guess.confidence.tolist()


class _Question:
    """A prompt, and the answer it is getting."""

    def __init__(
        self,
        prompt: list[int],
        origins: list[Origin],
        generation: Generation,
        on_view: Callable[[View], None],
        asked_at: int,
    ) -> None:
        self.asked_at = asked_at
        self.origins = origins
        self.on_view = on_view
        self.finished = False
        self.final: View | None = None
        self.last: View | None = None
        self._prompt = prompt
        self._generation = generation

    def ids(self) -> list[int]:
        """Truth at every position that may have crossed: a token is known here before its row is sent."""
        return [*self._prompt, *self._generation.token_ids]
