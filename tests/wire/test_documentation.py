"""docs/wire.md is true: its example is what the code sends, its tables name the code's fields, kinds and codes.

Print the example anew with ``python tests/wire/test_documentation.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import torch

from cutlayer.errors import RefusedError, RemoteCode
from cutlayer.tree import FURTHEST, MOST_GUESSES
from cutlayer.types import Cut
from cutlayer.wire import frames
from cutlayer.wire.client_session import ClientSession
from cutlayer.wire.codecs import CODECS
from cutlayer.wire.frames import Kind
from cutlayer.wire.prefix import PrefixDigests
from cutlayer.wire.server_session import ServerSession, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parents[2] / "docs" / "wire.md"
HIDDEN = 2
CODEC = CODECS.get("fp16")
ROW = CODEC.row_bytes(HIDDEN)


def rows(*values: float) -> bytes:
    """One row of equal values for each."""
    return CODEC.encode(torch.tensor([[value] * HIDDEN for value in values]))


def example() -> Iterator[tuple[str, str, bytes]]:
    """Who, what for, and the frame, of a short conversation between the two halves."""
    client = ClientSession(ROW)
    server = ServerSession("me", CODEC, HIDDEN, 256, 64)
    server.id = bytes(range(16))

    def result(step: bytes) -> bytes:
        frame = frames.decode(step)
        server.accept(frame.header, frame.payload)
        server.commit(frame.header, frame.payload)
        answer = frames.Result(frame.header.sequence, frame.header.base, frame.header.count, 900)
        return frames.encode(answer, b"" if frame.header.flags else bytes(frame.payload))

    yield "C", "OPEN: model 0123abcd, layers [2, 4) of 6, fp16", client.open("0123abcd", Cut(2, 4, 6), "fp16")
    yield "S", "OPENED: session 00 01 … 0f, epoch 1, 256 positions, 64 in a step", server.opened()
    client.receive(server.opened())
    prompt = client.step(0, rows(1, 2, 3))
    yield "C", "STEP 1: three rows from position 0, after nothing", prompt
    yield "S", "RESULT of step 1: three rows", result(prompt)
    client.receive(frames.encode(frames.Result(1, 0, 3, 900), rows(1, 2, 3)))
    yield "C", "STEP 2: one row from position 2, which forgets the third", client.step(2, rows(4))
    resume = client.resume()
    yield "C", "RESUME on a new connection, for the answer never came: epoch 2, both sides agree on rows [0, 2)", resume
    resumed = server.resumed(frames.decode(resume).header)
    yield "S", "RESUMED: the server has those two (and knows nothing of step 2)", resumed
    client.receive(resumed)
    (again,) = client.replay(1 << 20)
    yield "C", "STEP 1 of epoch 2: the same row again", again.frame
    answer = result(again.frame)
    yield "S", "RESULT: one row", answer
    client.receive(answer)
    tree = client.step(3, rows(5, 6, 7), parents=[1, 2, 1])
    yield "C", "STEP 2: three guesses; the first two both follow row 2, the last follows the one before it", tree
    answer = result(tree)
    yield "S", "RESULT: three rows", answer
    client.receive(answer)
    path = client.step(5, rows(8), path=[1, 2])
    yield "C", "STEP 3: the second and third were right and move to positions 3 and 4; one row after them", path
    yield "S", "RESULT: one row", result(path)
    gap = frames.encode(frames.Step(4, 9, 1, 0, bytes(8)), rows(5))
    yield "C", "STEP 4 from position 9, where nothing is held before it", gap
    with pytest.raises(RefusedError) as refused:
        result(gap)
    yield "S", "ERROR bad_step, not fatal", refusal(refused.value)
    yield "C", "CLOSE", frames.encode(frames.Close())
    yield "S", "CLOSED", frames.encode(frames.Closed())


def written(conversation: Iterator[tuple[str, str, bytes]]) -> str:
    """As it stands on the page."""
    lines = []
    for who, what, frame in conversation:
        lines.append(f"# {what}")
        pieces = [frame[start : start + 32].hex(" ") for start in range(0, len(frame), 32)]
        lines.append(f"{who}  " + "\n   ".join(pieces))
    return "\n".join(lines) + "\n"


def block(page: str) -> str:
    found = re.search(r"## Worked example.*?```text\n(.*?)```", page, re.DOTALL)
    assert found
    return found.group(1)


def parsed(text: str) -> list[tuple[str, bytes]]:
    """Who said which bytes, read from the page alone."""
    messages: list[tuple[str, bytes]] = []
    for line in text.splitlines():
        if line.startswith(("C", "S")):
            messages.append((line[0], bytes.fromhex(line[1:])))
        elif line.startswith(" "):
            messages[-1] = (messages[-1][0], messages[-1][1] + bytes.fromhex(line))
    return messages


def test_the_example_is_what_the_code_sends() -> None:
    assert block(PAGE.read_text(encoding="utf-8")) == written(example())


def test_the_example_decodes_as_it_says() -> None:
    messages = parsed(block(PAGE.read_text(encoding="utf-8")))
    headers = [frames.decode(data).header for _, data in messages]
    assert [(who, Kind(data[0]).name) for who, data in messages] == [
        ("C", "OPEN"), ("S", "OPENED"), ("C", "STEP"), ("S", "RESULT"), ("C", "STEP"), ("C", "RESUME"), ("S", "RESUMED"),
        ("C", "STEP"), ("S", "RESULT"), ("C", "STEP"), ("S", "RESULT"), ("C", "STEP"), ("S", "RESULT"),
        ("C", "STEP"), ("S", "ERROR"), ("C", "CLOSE"), ("S", "CLOSED"),
    ]  # fmt: skip
    assert headers[0] == frames.Open(1, "0123abcd", Cut(2, 4, 6), "fp16", 0)
    prompt, two = frames.decode(messages[2][1]), PrefixDigests()
    assert CODEC.decode(prompt.payload, HIDDEN).tolist() == [[1, 1], [2, 2], [3, 3]]
    two.extend(prompt.payload[: 2 * ROW], ROW)
    assert headers[4] == frames.Step(2, 2, 1, 0, two.at(2))
    assert headers[6] == frames.Resumed(2, 2, two.at(2))
    assert headers[7] == frames.Step(1, 2, 1, 0, two.at(2))
    assert bytes(frames.decode(messages[4][1]).payload) == bytes(frames.decode(messages[7][1]).payload)
    chain = PrefixDigests()
    chain.extend(rows(1, 2, 4), ROW)
    assert headers[9] == frames.Step(2, 3, 3, 0, chain.at(3), parents=bytes([1, 2, 1]))
    assert bytes(frames.decode(messages[9][1]).payload) == rows(5, 6, 7)
    chain.extend(rows(6, 7), ROW)
    assert headers[11] == frames.Step(3, 5, 1, 0, chain.at(5), kept=bytes([0b110]))
    assert headers[14].code is RemoteCode.BAD_STEP


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.name)
def test_the_tables_name_every_field_in_order(kind: Kind) -> None:
    page = PAGE.read_text(encoding="utf-8")
    _, found, rest = page.partition(f"{kind.name} ({int(kind)})")
    assert found, f"{kind.name} ({int(kind)}) is not on the page"
    section = re.split(r"\n[A-Z_]+ \(\d+\)|\n## ", rest)[0]
    names = [field.name for field in msgspec.structs.fields(frames.HEADERS[kind])]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == names


def test_every_error_code_is_explained() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rules = page[page.index("## Session rules") :]
    assert sorted(re.findall(r"^\| `(\w+)` \|", rules, re.MULTILINE)) == sorted(RemoteCode)


def test_the_limits_are_the_codes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert f"0 … {frames.SEQUENCES - 1}, wrapping" in page
    assert f"0 … {frames.MAX_POSITIONS}" in page
    assert f"1 … {frames.MAX_STEP_POSITIONS}" in page
    assert f"exactly {frames.DIGEST_BYTES} and {frames.SESSION_BYTES} bytes" in page
    assert f"3 + {frames.MAX_HEADER_BYTES}" in page
    assert f"binary, at most {frames.MAX_STEP_POSITIONS} bytes" in page
    assert f"binary, at most {frames.MAX_STEP_POSITIONS // 8} bytes" in page
    assert f"one distance for each row, 1 … {FURTHEST}," in page
    assert f"At most {MOST_GUESSES} rows may come after the trunk" in page
    assert f"`{frames.SUBPROTOCOL}`" in page


def test_the_sizes_are_the_codes() -> None:
    step = len(frames.encode(frames.Step(300, 3000, 1, 0, bytes(8))))
    result = len(frames.encode(frames.Result(300, 3000, 1, 70_000)))
    page = PAGE.read_text(encoding="utf-8")
    assert f"a STEP of one row is {step} bytes and its RESULT {result} bytes" in page
    assert f"**{step + result + 8 + 4 + 22 + 22} bytes**" in page


if __name__ == "__main__":
    print(written(example()), end="")
