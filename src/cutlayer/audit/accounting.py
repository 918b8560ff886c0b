"""Every byte that left, explained: headers from public values, payloads from head, defence and codec.

Searching for leaks finds only what one thought of. This is the other half: each outgoing header must equal the one computed
here from the model's fingerprint, the cut and the rows sent before; each outgoing row must equal codec(defence(head(tokens))),
computed again from what the head returned during the run. What is explained in full has no room for anything else.

Notation: T positions, D hidden size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cutlayer.defences.positions import History
from cutlayer.errors import CutlayerError, NonFiniteError
from cutlayer.wire import frames
from cutlayer.wire.prefix import PrefixDigests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.audit.messages import Message
    from cutlayer.audit.witness import HeadCall
    from cutlayer.client.connect import Client


class Account(NamedTuple):
    """What could and could not be explained."""

    headers: int
    """Outgoing frames whose header is as computed."""
    unexplained_headers: list[str]
    """Labels of the others, with the field that differs."""
    rows: int
    """Outgoing rows as computed."""
    unexplained_rows: list[str]
    """Labels of frames that carried others."""
    codec_error: float
    """Largest relative difference between a released row and what the server decodes from it."""
    defence_change: float
    """Largest relative difference between a row of the head and the released one."""


def account(messages: Sequence[Message], client: Client, calls: Sequence[HeadCall]) -> Account:
    """Explain every outgoing frame of a session.

    Args:
        messages: of the whole session, in order.
        client: that had it.
        calls: every call of its head.

    Footgun: a session that guesses is not explained; have it generate with ``speculate=False``.
    """
    row_bytes = client.codec.row_bytes(client.info.hidden_size)
    known, codec_error, defence_change = _computed_rows(client, calls, row_bytes)
    expected = _Headers(client)
    good_headers = good_rows = 0
    bad_headers: list[str] = []
    bad_rows: list[str] = []
    for message in messages:
        if message.captured.direction == "received":
            expected.note(message.header, message.payload)
            continue
        problem = expected.problem(message, row_bytes)
        if problem is None:
            good_headers += 1
        else:
            bad_headers.append(f"{message.label}: {problem}")
        if isinstance(message.header, frames.Step):
            base = message.header.base
            rows = [bytes(message.payload[i : i + row_bytes]) for i in range(0, len(message.payload), row_bytes)]
            explained = sum((base + i, row) in known for i, row in enumerate(rows))
            good_rows += explained
            if explained < len(rows):
                bad_rows.append(f"{message.label}: {len(rows) - explained} of {len(rows)} rows")
    return Account(good_headers, bad_headers, good_rows, bad_rows, codec_error, defence_change)


def _computed_rows(
    client: Client, calls: Sequence[HeadCall], row_bytes: int
) -> tuple[set[tuple[int, bytes]], float, float]:
    """All (position, encoded row) that head, defence and codec give; and the two largest relative changes."""
    known: set[tuple[int, bytes]] = set()
    history = History()
    codec_error = defence_change = 0.0
    for call in calls:
        # In one session a defence gives the same output for the same prefix, so this repeats what was released.
        released = client.defence.release(call.hidden.clone(), history.extend(call.base, call.ids))  # [T, D]
        defence_change = max(defence_change, _relative(released, call.hidden))
        try:
            encoded = client.codec.encode(released)
        except NonFiniteError:
            continue  # the run ended here for the same reason
        for i in range(len(released)):
            known.add((call.base + i, encoded[i * row_bytes : (i + 1) * row_bytes]))
        try:
            decoded = client.codec.decode(encoded, client.info.hidden_size)
        except CutlayerError:
            codec_error = float("inf")
        else:
            codec_error = max(codec_error, _relative(decoded, released))
    return known, codec_error, defence_change


def _relative(changed: torch.Tensor, original: torch.Tensor) -> float:
    """Largest ‖changed − original‖ / ‖original‖ over the rows of two [T, D]."""
    if changed.shape != original.shape:
        return float("inf")
    reference = original.double().cpu()
    distance = (changed.double().cpu() - reference).norm(dim=-1)  # [T]
    return float((distance / reference.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)).max())


class _Headers:
    """The client's half of the protocol, followed from outside: which header must come next."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._digests = PrefixDigests()
        self._session = b""
        self._epoch = 0
        self._sequence = 0
        self._settled = 0
        """Positions whose results came back."""

    def note(self, header: frames.Header | None, payload: memoryview) -> None:
        """Take in what the server said."""
        if isinstance(header, frames.Opened):
            self._session, self._epoch, self._sequence = header.session, header.epoch, 0
        elif isinstance(header, frames.Resumed):
            self._sequence = 0
        elif isinstance(header, frames.Result) and payload:
            self._settled = header.base + header.count

    def problem(self, message: Message, row_bytes: int) -> str | None:
        """Why this outgoing frame's header is not the one that was due, or None."""
        header = message.header
        match header:
            case None:
                return "it does not decode"
            case frames.Info() | frames.Close():
                return None  # no fields
            case frames.Open():
                client = self._client
                due = frames.Open(frames.PROTOCOL, client.info.fingerprint, client.cut, client.codec.name, 0)
                return None if header == due else "it asks for something other than this model, cut and codec"
            case frames.Resume():
                self._epoch += 1  # every attempt takes one
                again = frames.Resume(self._session, self._epoch, self._settled)
                return None if header == again else "it names something other than this session and what it holds"
            case frames.Step():
                return self._step(header, message.payload, row_bytes)
            case _:
                return "clients do not send this kind"

    def _step(self, step: frames.Step, payload: memoryview, row_bytes: int) -> str | None:
        self._sequence = (self._sequence + 1) % frames.SEQUENCES
        if step.sequence != self._sequence:
            self._sequence = step.sequence
            return "its sequence number was not next"
        if step.kept or step.parents:
            return "it speaks of guesses, and none were made"
        if step.base > len(self._digests):
            return "it leaves a gap in the positions"
        if not step.flags & frames.NO_REPLY:
            self._settled = min(self._settled, step.base)
        self._digests.rollback(step.base)
        due = self._digests.at(step.base)
        self._digests.extend(payload[: len(payload) // row_bytes * row_bytes], row_bytes)
        return None if step.digest == due else "its digest is not that of the rows sent before"
