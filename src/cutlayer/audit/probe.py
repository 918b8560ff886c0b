"""One short generation under observation: what is asked, what crossed, and what this side knows that must not have crossed."""

from __future__ import annotations

import secrets
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cutlayer.audit.tap import Captured, Tally, Tap
from cutlayer.audit.witness import Witness
from cutlayer.client.connect import Client, Options
from cutlayer.client.remote import RemoteBody
from cutlayer.errors import InputError, WireError

if TYPE_CHECKING:
    from cutlayer.wire.frames import InfoReply
    from cutlayer.wire.transport import Connect, PeerSecurity

PINGS: Final = 9
_CANARY_WORDS: Final = 3
_SYLLABLES: Final = 4
_CONSONANTS: Final = "bdfgklmnprstvz"
_VOWELS: Final = "aeiou"


@dataclass(frozen=True, repr=False)
class Probe:
    """What is asked."""

    prompt: str
    canary: str | None
    """Random phrase within the prompt; None when the prompt is the user's own."""

    def __repr__(self) -> str:
        return f"Probe(<{len(self.prompt)} characters>, canary={self.canary!r})"


@dataclass(frozen=True)
class Ping:
    """One INFO round trip."""

    round_trip_s: float
    offset_s: float
    """Server's clock minus this machine's, half the round trip taken off."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ProbeRun:
    """Everything the checks look at."""

    probe: Probe
    client: Client
    """Closed; its parts, codec and defence are still usable."""
    info: InfoReply
    security: PeerSecurity
    pings: list[Ping]
    frames: tuple[Captured, ...]
    asked_at: int
    """Index of the first frame after the client was given the prompt. None before it can depend on the prompt."""
    complete: bool
    sent: Tally
    received: Tally
    missed: Tally
    prompt_ids: list[int]
    answer_ids: list[int]
    answer: str
    witness: Witness
    failure: str | None
    """Why the generation ended early, if it did."""

    @property
    def round_trip_ms(self) -> float:
        """Median."""
        return statistics.median(ping.round_trip_s for ping in self.pings) * 1e3

    def __repr__(self) -> str:
        return f"ProbeRun({self.probe!r}, {len(self.frames)} frames, failure={self.failure!r})"


def make_probe(prompt: str | None = None) -> Probe:
    """The user's prompt, or one of ours around a random canary.

    Raises:
        InputError: the prompt is blank.
    """
    if prompt is not None:
        if not prompt.strip():
            raise InputError("the prompt is blank; give some text, or leave it out for a random one")
        return Probe(prompt, None)
    canary = " ".join(_word() for _ in range(_CANARY_WORDS))
    return Probe(f"Repeat this phrase, then name the capital of France: {canary}", canary)


def run_probe(
    connect: Connect, probe: Probe, options: Options | None = None, max_tokens: int = 16, limit_bytes: int | None = None
) -> ProbeRun:
    """Connect through a tap, generate, and keep everything. A failure after connecting is part of the result.

    Args:
        connect: opens a transport to the server.
        probe: what to ask.
        options: as for `Client`.
        max_tokens: the answer's longest length.
        limit_bytes: memory for recorded frames; None takes the tap's default.

    Raises:
        ConnectionLostError: the server cannot be reached.
        RemoteError: it refuses this client or runs another model or cut.
        ModelNotFoundError: the model is not on this machine.
    """
    tap = Tap(connect) if limit_bytes is None else Tap(connect, limit_bytes)
    with closing(RemoteBody(tap)) as remote:
        pings = [_ping(remote) for _ in range(PINGS)]
    prompt_ids: list[int] = []
    answer_ids: list[int] = []
    failure = None
    with Client(tap, options) as client:
        security = client.security()  # a closed connection no longer knows
        witness = Witness(client.parts)
        raw = not _has_template(client)
        prompt_ids = client.encode(probe.prompt, raw=raw)
        asked_at = tap.sent.frames + tap.received.frames
        generation = client.generate(probe.prompt, max_tokens=max_tokens, raw=raw, ignore_eos=True, speculate=False)
        try:
            with witness:
                for _ in generation:
                    pass
        except WireError as error:
            failure = str(error)
        answer_ids = generation.token_ids
        answer = client.tokenizer.decode(answer_ids)
    return ProbeRun(
        probe=probe,
        client=client,
        info=client.info,
        security=security,
        pings=pings,
        frames=tap.frames,
        asked_at=asked_at,
        complete=tap.complete,
        sent=tap.sent,
        received=tap.received,
        missed=tap.missed,
        prompt_ids=prompt_ids,
        answer_ids=answer_ids,
        answer=answer,
        witness=witness,
        failure=failure,
    )


def _word() -> str:
    return "".join(secrets.choice(_CONSONANTS) + secrets.choice(_VOWELS) for _ in range(_SYLLABLES))


def _ping(remote: RemoteBody) -> Ping:
    clock, begun = time.time(), time.perf_counter()
    info = remote.info()
    taken = time.perf_counter() - begun
    return Ping(taken, info.time - (clock + taken / 2))


def _has_template(client: Client) -> bool:
    """Whether the model takes conversations; base models have no chat template and are asked in plain text."""
    try:
        client.encode("hello")
    except InputError:
        return False
    return True
