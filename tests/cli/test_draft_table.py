"""`cutlayer draft-table`: from answers through a server to a table that guesses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cutlayer.cli.client_options import ConnectOptions
from cutlayer.cli.draft_table import draft_table
from cutlayer.client.connect import Client, Options
from cutlayer.client.speculation.table import find_table, load_table
from cutlayer.errors import InputError
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, kw_only=True)
class InMemory(ConnectOptions):
    """Options of a client whose server is in this process."""

    local: LocalServer

    def dialler(self) -> Any:
        return self.local.connect


@pytest.fixture
def at(tiny_with_text: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[InMemory]:
    directory = tiny_with_text("llama")
    monkeypatch.setenv("CUTLAYER_HOME", str(tmp_path / "home"))
    with LocalServer(build_service(directory, "tiny", "1:3", "float32")) as server:
        yield InMemory(server="ws://127.0.0.1:1", model=str(directory), local=server)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("Good day", "Bad day", "No day")))
    return path


def test_the_table_is_found_and_saves_round_trips(
    at: InMemory, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"at": at, "prompts": prompts, "answers": 3, "length": 24, "sessions": 2, "json": True}

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cutlayer.client.speculation.table.build", interrupt)
        with pytest.raises(KeyboardInterrupt):
            draft_table(**options)
    assert "goes on" in capsys.readouterr().err
    (folder,) = (tmp_path / "home" / "tables").iterdir()
    assert len(list(folder.glob("answer-*"))) == 3
    assert folder.stat().st_mode & 0o077 == 0
    with monkeypatch.context() as patch:  # nothing is gathered twice
        patch.setattr("cutlayer.client.speculation.head.collect.save_example", interrupt)
        assert draft_table(**options) == 0
    noted = json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))
    assert noted["answers"] == 3
    assert 0 < noted["contexts"] <= 3 * 3 * 24  # of two, three and four tokens
    # All that is guessed is sent, whatever rows cost on this machine.
    monkeypatch.setattr("cutlayer.client.speculation.drafting.best_size", lambda draft, _: len(draft))
    with Client(at.dialler(), Options(model=at.model, speculate="recycling")) as client:
        found = find_table(client.info.fingerprint)
        assert found == Path(noted["path"])
        assert [path.name for path in found.parent.iterdir()] == [found.name]
        load_table(found, client.info.fingerprint, len(client.parts.head.embedding()))
        asked = {"max_tokens": 24, "ignore_eos": True}
        guessed = client.generate("Good day", **asked).result()  # type: ignore[arg-type]
    with Client(at.dialler(), Options(model=at.model, speculate="recycling:table=none")) as client:
        without = client.generate("Good day", **asked).result()  # type: ignore[arg-type]
    assert guessed.token_ids == without.token_ids
    assert guessed.steps < without.steps
    assert found.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"answers": 0}, "1 or more"),
        ({"length": 2000}, "1 to 1024"),
        ({"sessions": 65}, "1 to 64"),
        ({"out": Path("/nowhere/table.safetensors")}, "is no directory"),
        ({"prompts": Path("missing.jsonl")}, "cannot read"),
    ],
)
def test_wrong_values_are_refused(at: InMemory, wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        draft_table(at=at, **wrong)
