"""The frame format; ``docs/wire.md`` is its specification.

    byte 0        kind
    bytes 1–2     header length H, little endian
    bytes 3–3+H   header: one MessagePack array, the fields of the kind's class in order
    rest          payload: hidden states, row by row, little endian (STEP and RESULT only)

Decoding checks everything that can be checked without a session: kind, lengths, types, ranges. Nothing is allocated on
the peer's word: header and payload are views into the bytes received.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Annotated, Final

import msgspec

from cutlayer.errors import CutError, FrameError, RemoteCode
from cutlayer.types import Cut, DtypeName
from cutlayer.wire.bitmap import marked
from cutlayer.wire.printable import printable

PROTOCOL: Final = 1
SUBPROTOCOL: Final = "cutlayer.1"
"""WebSocket subprotocol: the version is agreed before the first frame."""

MAX_HEADER_BYTES: Final = 0xFFFF
MAX_STEP_POSITIONS: Final = 4096
MAX_POSITIONS: Final = 1 << 24
DIGEST_BYTES: Final = 8
SESSION_BYTES: Final = 16
SEQUENCES: Final = 1 << 16
"""Sequence numbers wrap here: only a few steps are ever under way, and two bytes keep the header of a step short."""

_PREFIX: Final = struct.Struct("<BH")
_UINT32: Final = struct.Struct(">BI")
"""MessagePack's ``uint 32``: 0xCE and four bytes."""

U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF_FFFF)]
Sequence = Annotated[int, msgspec.Meta(ge=0, lt=SEQUENCES)]
Position = Annotated[int, msgspec.Meta(ge=0, le=MAX_POSITIONS)]
Count = Annotated[int, msgspec.Meta(ge=1, le=MAX_STEP_POSITIONS)]
Name = Annotated[str, msgspec.Meta(max_length=256)]
Text = Annotated[str, msgspec.Meta(max_length=1024)]
Distances = Annotated[bytes, msgspec.Meta(max_length=MAX_STEP_POSITIONS)]
Bits = Annotated[bytes, msgspec.Meta(max_length=MAX_STEP_POSITIONS // 8)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
SessionId = Annotated[bytes, msgspec.Meta(min_length=SESSION_BYTES, max_length=SESSION_BYTES)]


class Kind(IntEnum):
    """First byte of a frame."""

    OPEN = 1
    OPENED = 2
    RESUME = 3
    RESUMED = 4
    STEP = 5
    RESULT = 6
    CLOSE = 7
    CLOSED = 8
    INFO = 9
    INFO_REPLY = 10
    ERROR = 15


class Header(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all headers."""

    def fields(self) -> tuple[object, ...]:
        """What is sent, in order."""
        return msgspec.structs.astuple(self)


class Open(Header, frozen=True):
    """Client → server: start a session."""

    protocol: U32
    fingerprint: Name
    cut: Cut
    codec: Name
    max_positions: Position
    """Positions the client wants room for; 0 takes the server's limit."""


class Opened(Header, frozen=True):
    """Server → client: the session is open."""

    session: SessionId
    epoch: U32
    max_positions: Position
    max_step_positions: Count


class Resume(Header, frozen=True):
    """Client → server, on a new connection: continue a session whose connection broke."""

    session: SessionId
    epoch: U32
    """Greater than in any earlier frame of this session: the client counts its attempts, so one whose answer was lost does
    no harm, and one that arrives late is refused."""
    position: Position
    """Rows [0, position) are the client's last word; what it sent beyond may have changed since."""


class Resumed(Header, frozen=True):
    """Server → client: the session goes on; frames of older epochs are refused from now on."""

    epoch: U32
    """The one that was asked for. Sequence numbers start over: the next step is number 1."""
    position: Position
    """The position asked about, or how many rows are held before the first that branches if those are fewer."""
    digest: Digest
    """Prefix digest at `position`."""


class Step(Header, frozen=True):
    """Client → server: run `count` positions from `base` on. Payload: their hidden states, [count, D].

    A step is a function of its prefix alone: everything the server held from `base` on is forgotten first, or, if guesses
    are kept, everything from the anchor on that is not on their path. Sending a step again therefore changes nothing.
    """

    sequence: Sequence
    base: Position
    count: Count
    flags: Annotated[int, msgspec.Meta(ge=0, le=1)]
    digest: Digest
    """Digest of the rows [0, base) as the client sent them."""
    kept: Bits = b""
    """Which guesses turned out right: of the rows from the anchor on those that stay, moved together. They end at `base`."""
    parents: Distances = b""
    """For each row, the distance back to the one it follows; empty: each follows the one before it."""

    @property
    def path(self) -> list[int]:
        """Distances from the anchor to the rows kept."""
        return marked(self.kept)

    @property
    def anchor(self) -> int:
        """Positions the rows kept come after: what is held before them stays as it is."""
        return self.base - int.from_bytes(self.kept).bit_count()

    def fields(self) -> tuple[object, ...]:
        """See `Header.fields`. What would say nothing is left out: a chain costs nothing for the trees it is not."""
        optional = (self.kept, self.parents) if self.parents else (self.kept,) if self.kept else ()
        return self.sequence, _steady(self.base, self.count), self.count, self.flags, self.digest, *optional


NO_REPLY: Final = 1
"""Step flag: rebuild the cache, return no hidden states (replay)."""


class Result(Header, frozen=True):
    """Server → client: a step was run. Payload: hidden states [count, D], or nothing after a no-reply step."""

    sequence: Sequence
    base: Position
    count: Count
    compute_us: U32
    """Microseconds the server spent in the model."""

    def fields(self) -> tuple[object, ...]:
        """See `Header.fields`."""
        return self.sequence, _steady(self.base, self.count), self.count, _steady(self.compute_us, self.count)


class Close(Header, frozen=True):
    """Client → server: forget the session."""


class Closed(Header, frozen=True):
    """Server → client: the session and its cache are gone."""


class Info(Header, frozen=True):
    """Client → server: who are you?"""


class InfoReply(Header, frozen=True):
    """Server → client: what it runs and what it claims to have opened. Its strings are shown to people."""

    protocol: U32
    version: Name
    model: Name
    fingerprint: Name
    cut: Cut
    dtype: DtypeName
    device: Name
    hidden_size: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    max_positions: Position
    codecs: Annotated[list[Name], msgspec.Meta(max_length=64)]
    time: Annotated[float, msgspec.Meta(ge=0, le=1e11)]
    """Unix seconds on the server's clock."""
    opened: Annotated[list[Name], msgspec.Meta(max_length=1024)]
    """Checkpoint tensors the server process opened, as far as they fit one header; `opened_count` counts all."""
    opened_count: U32

    def __post_init__(self) -> None:
        names = (self.version, self.model, self.fingerprint, self.device, *self.codecs, *self.opened)
        unfit = next((name for name in names if printable(name) != name), None)
        if unfit is not None:
            raise ValueError(f"{unfit!a} holds characters that cannot be printed")


class Failure(Header, frozen=True):
    """Either way: the last frame (or the session, if `fatal`) was refused."""

    code: RemoteCode
    message: Text
    fatal: bool

    def __post_init__(self) -> None:
        # Replaced, not refused: the code tells the receiver how to go on, whatever the words are.
        msgspec.structs.force_setattr(self, "message", printable(self.message))


HEADERS: Final[dict[Kind, type[Header]]] = {
    Kind.OPEN: Open,
    Kind.OPENED: Opened,
    Kind.RESUME: Resume,
    Kind.RESUMED: Resumed,
    Kind.STEP: Step,
    Kind.RESULT: Result,
    Kind.CLOSE: Close,
    Kind.CLOSED: Closed,
    Kind.INFO: Info,
    Kind.INFO_REPLY: InfoReply,
    Kind.ERROR: Failure,
}
_KIND_OF: Final = {header: kind for kind, header in HEADERS.items()}
_WITH_PAYLOAD: Final = frozenset({Kind.STEP, Kind.RESULT})
_DECODERS: Final = {kind: msgspec.msgpack.Decoder(header) for kind, header in HEADERS.items()}
_ENCODER: Final = msgspec.msgpack.Encoder()


class Frame(msgspec.Struct, frozen=True):
    """A decoded frame. `payload` is a view into the received bytes."""

    header: Header
    payload: memoryview


def encode(header: Header, payload: bytes | memoryview = b"") -> bytes:
    """Frame → bytes.

    Raises:
        FrameError: the header does not fit.
    """
    body = _ENCODER.encode(header.fields())
    if len(body) > MAX_HEADER_BYTES:
        raise FrameError(f"header of {len(body)} bytes exceeds {MAX_HEADER_BYTES}")
    return b"".join((_PREFIX.pack(_KIND_OF[type(header)], len(body)), body, payload))


def decode(data: bytes | memoryview) -> Frame:
    """Bytes → frame.

    Raises:
        FrameError: truncated, of unknown kind, or with a malformed header.
    """
    view = memoryview(data)
    if len(view) < _PREFIX.size:
        raise FrameError(f"frame of {len(view)} bytes is shorter than its {_PREFIX.size}-byte prefix")
    number, length = _PREFIX.unpack_from(view)
    try:
        kind = Kind(number)
    except ValueError:
        raise FrameError(f"unknown frame kind {number}") from None
    if len(view) < _PREFIX.size + length:
        raise FrameError(f"{kind.name} frame of {len(view)} bytes is cut short: its header alone needs {length}")
    payload = view[_PREFIX.size + length :]
    if payload and kind not in _WITH_PAYLOAD:
        raise FrameError(f"{kind.name} frame carries {len(payload)} payload bytes; it takes none")
    try:
        header = _DECODERS[kind].decode(view[_PREFIX.size : _PREFIX.size + length])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, CutError) as error:
        # CutError: a cut checks itself, and msgspec passes on what is no ValueError.
        # Cut to size and cleaned: msgspec quotes the values it rejects.
        raise FrameError(f"malformed {kind.name} header: {printable(str(error)[:200])}") from None
    return Frame(header, payload)


def _steady(number: int, rows: int) -> int | msgspec.Raw:
    """A number in the header of a STEP or RESULT, in the same number of bytes whatever it is.

    Else the length of a message would tell how far a session has come in so many steps: how many guesses were right. The numbers
    of a step of one row stay as short as they can be; without guesses an observer counts positions anyway.
    """
    return number if rows == 1 else msgspec.Raw(_UINT32.pack(0xCE, number))
