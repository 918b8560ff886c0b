"""A draft head is made from end to end: data through a server, training that can be interrupted, and the command."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cutlayer.cli.client_options import ConnectOptions
from cutlayer.cli.train_draft import train_draft
from cutlayer.client.connect import Client, Options
from cutlayer.client.speculation.head import training
from cutlayer.client.speculation.head.collect import Job, answer_jobs, collect, file_of, text_jobs
from cutlayer.client.speculation.head.examples import load_example
from cutlayer.client.speculation.head.file import find_head, read_card
from cutlayer.client.speculation.head.training import Recipe, train
from cutlayer.errors import CutlayerError, InputError, WeightsError
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROMPTS = [[7 + i * (j + 3) % 90 for i in range(6)] for j in range(11)]
TEXTS = [[7 + i * (j + 5) % 90 for i in range(30)] for j in range(4)]
JOBS = [*answer_jobs(PROMPTS, 14, most=12), *text_jobs(TEXTS)]
RECIPE = Recipe(outputs=64, rank=8, epochs=8, batch=4, rate=0.02, checks=4, patience=4)


@pytest.fixture(scope="module")
def server(tiny_with_text: Callable[[str], Path]) -> Iterator[LocalServer]:
    with LocalServer(build_service(tiny_with_text("llama"), "tiny", "2:-2", "float32")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LocalServer, tiny_with_text: Callable[[str], Path]) -> Iterator[Client]:
    with Client(server.connect, Options(model=str(tiny_with_text("llama")), speculate="off")) as client:
        yield client


@pytest.fixture(scope="module")
def data(server: LocalServer, client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    collect(server.connect, client.trusted, "none", JOBS, folder, 3, lambda job: None)
    return folder


def files(folder: Path, *, held: bool) -> list[Path]:
    return [file_of(job, folder) for job in JOBS if job.held == held]


def test_what_is_gathered_is_what_the_model_says(client: Client, data: Path) -> None:
    for job in (JOBS[0], JOBS[5], JOBS[-1]):
        example = load_example(file_of(job, data))
        ids = example.ids.tolist()
        expected = client.generate(ids, max_tokens=0, prompt_logprobs=True, logprobs=3)
        list(expected)
        for likely, chances, entry in zip(example.likely, example.chances, expected.prompt_logprobs[1:], strict=False):
            assert entry is not None
            assert likely[:3].tolist() == [token for token, _ in entry.top]
            assert chances[:3].log().tolist() == pytest.approx([value for _, value in entry.top], abs=0.02)
        answer = client.generate(job.ids, max_tokens=12).result().token_ids if job.answer else []
        assert ids[: len(job.ids)] == list(job.ids)
        said = ids[len(job.ids) :]
        assert said == answer[: len(said)]
        assert len(answer) - len(said) <= 1  # the last token need not go through the model
        assert int(example.answer) == len(job.ids)


def test_what_is_there_is_not_gathered_again(client: Client, data: Path) -> None:
    def refuse() -> Any:
        raise AssertionError("connected")

    done: list[Job] = []
    collect(refuse, client.trusted, "none", JOBS, data, 3, done.append)
    assert done == JOBS


def test_answers_to_a_prompt_are_held_back_together() -> None:
    jobs = answer_jobs(PROMPTS, 33, most=5)
    held = {tuple(job.ids) for job in jobs if job.held}
    assert held == {tuple(PROMPTS[0]), tuple(PROMPTS[10])}
    assert not held & {tuple(job.ids) for job in jobs if not job.held}
    assert [job.sampling.temperature for job in jobs] == [0.0] * 11 + [0.7] * 22


def test_training_lowers_the_loss(client: Client, data: Path, tmp_path: Path) -> None:
    steps: list[int] = []
    trained = train(
        client.trusted,
        files(data, held=False),
        files(data, held=True),
        RECIPE,
        tmp_path / "checkpoint.safetensors",
        lambda step, total, progress: steps.append(step),
    )
    assert steps == list(range(1, trained.steps + 1))
    # The cross-entropy cannot fall below the entropy of what a random model says, which is most of it.
    assert trained.losses == sorted(trained.losses, reverse=True)
    assert trained.losses[-1] < trained.losses[0] - 0.05
    assert trained.best == max(trained.acceptance) >= 1


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(
    client: Client, data: Path, tmp_path: Path
) -> None:
    def run(name: str, stop_at: int = -1) -> training.Trained:
        def report(step: int, total: int, progress: object) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        kept = tmp_path / name
        return train(client.trusted, files(data, held=False), files(data, held=True), RECIPE, kept, report)

    straight = run("straight")
    for stop_at in (3, 9, 17):
        with pytest.raises(KeyboardInterrupt):
            run("interrupted", stop_at)
    resumed = run("interrupted")
    assert resumed.losses == straight.losses
    assert resumed.acceptance == straight.acceptance
    other = resumed.head.trained()
    assert all(torch.equal(weight, other[name]) for name, weight in straight.head.trained().items())


def test_training_stops_when_held_out_acceptance_does(
    client: Client, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([1.0, 1.5, 1.4, 1.3, 1.2, 9.0])
    monkeypatch.setattr(training, "_held_acceptance", lambda *_: next(scores))
    recipe = Recipe(outputs=64, rank=4, epochs=10, batch=4, checks=10, patience=3)
    learned, held = files(data, held=False), files(data, held=True)
    trained = train(client.trusted, learned, held, recipe, tmp_path / "kept", lambda *_: None)
    assert trained.acceptance == [1.0, 1.5, 1.4, 1.3, 1.2]
    assert trained.best == 1.5


def test_damaged_checkpoints_and_examples_are_refused(client: Client, data: Path, tmp_path: Path) -> None:
    learned, held = files(data, held=False), files(data, held=True)
    (tmp_path / "kept").write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsError, match="no checkpoint"):
        train(client.trusted, learned, held, RECIPE, tmp_path / "kept", lambda *_: None)
    shutil.copy(learned[0], tmp_path / "example")
    (tmp_path / "example").write_bytes(learned[0].read_bytes()[:100])
    with pytest.raises(WeightsError, match="no example"):
        train(client.trusted, [tmp_path / "example"], held, RECIPE, tmp_path / "new", lambda *_: None)


@dataclass(frozen=True, kw_only=True)
class InMemory(ConnectOptions):
    """Options of a client whose server is in this process."""

    local: LocalServer

    def dialler(self) -> Any:
        return self.local.connect


@pytest.fixture
def at(server: LocalServer, tiny_with_text: Callable[[str], Path]) -> InMemory:
    return InMemory(server="ws://127.0.0.1:1", model=str(tiny_with_text("llama")), local=server)


def test_without_a_place_the_head_goes_where_the_default_finds_it(
    at: InMemory, client: Client, prompts: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_draft(at=at, prompts=prompts, answers=20, texts=0, length=136, outputs=50, rank=4, epochs=1) == 0
    found = find_head(client.trusted)
    assert found is not None
    assert found.parent == home / "heads"
    assert "--speculate auto\n" in capsys.readouterr().out


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("Good day", "Bad day", "x" * 500)))
    return path


def test_the_command_makes_a_head_and_goes_on_after_an_interruption(
    at: InMemory, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = tmp_path / "corpus.txt", tmp_path / "head.safetensors"
    corpus.write_text("the quick brown fox jumps over the lazy dog. " * 10)
    options: dict[str, Any] = {
        "at": at, "out": out, "prompts": prompts, "corpus": str(corpus), "answers": 20, "texts": 2, "length": 136,
        "outputs": 50, "rank": 4, "epochs": 1, "sessions": 2, "json": True,
    }  # fmt: skip

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cutlayer.client.speculation.head.training.loss_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_draft(**options)
    assert "goes on" in capsys.readouterr().err
    assert not out.exists()
    folder = tmp_path / "head.safetensors.training"
    assert folder.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="other settings"):
        train_draft(**{**options, "rank": 5})
    assert len(list(folder.glob("*-*.safetensors"))) == 22
    with monkeypatch.context() as patch:
        patch.setattr("cutlayer.client.speculation.head.collect.save_example", interrupt)
        assert train_draft(**options) == 0
    # The server is in this process and writes its log to the same place.
    summary = json.loads(next(line for line in capsys.readouterr().out.splitlines() if line.startswith("{")))
    assert summary["path"] == str(out)
    assert summary["answers"] == summary["held_out_answers"] == 10
    assert summary["texts"] == 12
    assert summary["tokens_per_trip"] >= 1
    assert not folder.exists()
    assert read_card(out).made == {key: value for key, value in summary.items() if key != "path"}
    with Client(at.dialler(), Options(model=at.model, speculate=f"head:path={out}")) as client:
        guessed = client.generate("Good day", max_tokens=10, ignore_eos=True).result()
        plain = client.generate("Good day", max_tokens=10, ignore_eos=True, speculate=False).result()
    assert guessed.token_ids == plain.token_ids


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"out": "missing/head.safetensors"}, "is no directory"),
        ({"answers": 5}, "too few"),
        ({"sessions": 0}, "1 to 64"),
        ({"texts": -1}, "0 or more"),
        ({"length": 20}, "129 to 1024"),
        ({"rate": 0.0}, "rate"),
        ({"rank": 0}, "rank"),
        ({"epochs": 0}, "epochs"),
        ({"prompts": "missing.jsonl"}, "cannot read"),
        ({"corpus": "missing.txt"}, "cannot read"),
        ({"prompts": "long"}, "1 of 2 prompts"),
    ],
)
def test_wrong_values_are_refused_before_anything_is_gathered(
    at: InMemory, prompts: Path, tmp_path: Path, wrong: dict[str, Any], words: str
) -> None:
    (tmp_path / "long").write_text('{"text": "short"}\n' + json.dumps({"text": "x" * 500}))
    options: dict[str, Any] = {"out": tmp_path / "head.safetensors", "prompts": prompts, **wrong}
    for name in ("out", "prompts"):
        options[name] = tmp_path / options[name]
    with pytest.raises(CutlayerError, match=words) as raised:
        train_draft(at=at, **options)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "head.safetensors.training").exists()
