"""Running an audit: what is measured, what is kept, what is measured again, and what must never be written."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from cutlayer.attacks.attack import ATTACKS, AttackCard, Guess
from cutlayer.audit import measure, run
from cutlayer.audit.cell_record import TEXTS
from cutlayer.audit.grid import Cell, expand, split_specs
from cutlayer.audit.knowledge import ThreatModel
from cutlayer.audit.request import Request
from cutlayer.audit.run import run_audit
from cutlayer.audit.shelf import Shelf
from cutlayer.errors import CutError, InputError, InsecureError, UnknownNameError
from cutlayer.records.record import read_record
from cutlayer.types import Cut

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.audit.cell_record import CellRecord
    from cutlayer.audit.request import Event, Job

PROMPTS = [
    {"id": "wine", "text": "Is metformin safe with wine?", "entities": ["metformin"]},
    {"id": "debt", "text": "My name is Ada Ring and I owe 350 euros.", "entities": ["Ada Ring"]},
    {"id": "plain", "text": "What is the capital of France?"},
]


def prompt_file(directory: Path, prompts: list[dict[str, object]] = PROMPTS) -> Path:
    path = directory / "prompts.jsonl"
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    return path


@pytest.fixture
def base(tiny_with_text: Callable[[str], Path], tmp_path: Path) -> Request:
    """A small audit of the tiny llama."""
    return small(tiny_with_text("llama"), tmp_path)


@pytest.fixture(scope="module")
def finished(tiny_with_text: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Request:
    """One that was run; not to be changed."""
    request = small(tiny_with_text("llama"), tmp_path_factory.mktemp("finished"))
    run_audit(request)
    return request


def small(model: Path, directory: Path) -> Request:
    return Request(
        model=str(model),
        attacks=("ridge", "search"),
        prompts=prompt_file(directory),
        pairs=3200,
        auxiliary=own_text(directory),
        out=directory / "audit",
    )


def own_text(directory: Path) -> Path:
    path = directory / "owned.txt"
    path.write_text("The quick brown fox jumps over the lazy dog, and 0123456789 = ABCDEFGHIJKLMNOPQRSTUVWXYZ? " * 40)
    return path


def changed(request: Request, **values: object) -> Request:
    return msgspec.structs.replace(request, **values)


def by_attack(records: list[CellRecord]) -> dict[str, CellRecord]:
    return {record.cell.attack: record for record in records}


def test_figures_follow_from_the_samples(finished: Request) -> None:
    records = by_attack(Shelf(finished.out).records())
    assert records["search"].figures["token_accuracy"].value == 1.0
    assert records["search"].figures["entity_recall"].value == 1.0
    ridge = records["ridge"]
    assert 0.5 < ridge.figures["token_accuracy"].value < 1
    assert ridge.samples["id"] == ["wine", "debt", "plain"]
    assert ridge.samples["tokens"] == [len(str(prompt["text"])) for prompt in PROMPTS]
    tokens = sum(ridge.samples["tokens"])
    read = sum(a * n for a, n in zip(ridge.samples["token_accuracy"], ridge.samples["tokens"], strict=True)) / tokens
    blind = (
        sum(a * n for a, n in zip(ridge.samples["prior_token_accuracy"], ridge.samples["tokens"], strict=True)) / tokens
    )
    assert ridge.figures["token_accuracy"].value == pytest.approx(read)
    assert ridge.figures["advantage"].value == pytest.approx((read - blind) / (1 - blind))
    assert ridge.figures["advantage"].low < ridge.figures["advantage"].value < ridge.figures["advantage"].high
    assert "canary_exact_match" not in ridge.figures  # no planted secrets
    assert ridge.config.unmeasured["canary_exact_match"]


def test_records_describe_themselves(finished: Request) -> None:
    for path in sorted(finished.out.glob("audit-*.json")):
        record = read_record(path)
        assert record.name == path.stem
        assert record.command.startswith("cutlayer audit run ")
        assert {"torch", "cutlayer"} <= set(record.versions)
        assert record.config["prompts"]["count"] == 3
        assert record.config["owned"]["pairs"] == 3200
        assert {len(column) for column in record.samples.values()} == {3}
        assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    assert not list(finished.out.glob("*.partial"))
    plan = Shelf(finished.out).plan()
    assert plan is not None
    assert [cell.attack for cell in plan.cells] == ["ridge", "search"]


def test_nothing_is_measured_twice_until_something_changes(base: Request) -> None:
    base = changed(base, attacks=("nearest", "ridge"))
    run_audit(base)
    written = {path: path.stat().st_mtime_ns for path in base.out.glob("audit-*.json")}
    kinds: list[str] = []
    run_audit(changed(base, cuts=("2:4",)), lambda event: kinds.append(event.kind))  # of six layers: the same cut
    assert [kind for kind in kinds if kind != "share"] == ["skipped", "skipped"]
    assert written == {path: path.stat().st_mtime_ns for path in base.out.glob("audit-*.json")}

    # Same ids, same lengths, another word: the keyed digest notices.
    altered = [{**prompt, "text": str(prompt["text"]).replace("France", "Norway")} for prompt in PROMPTS]
    prompt_file(base.out.parent, altered)
    kinds.clear()
    run_audit(base, lambda event: kinds.append(event.kind))
    assert [kind for kind in kinds if kind != "share"] == ["done", "done"]
    kinds.clear()
    run_audit(changed(base, fresh=True, attacks=("nearest",)), lambda event: kinds.append(event.kind))
    assert kinds[-1] == "done"


def test_an_interrupted_audit_goes_on(base: Request) -> None:
    def stop(event: Event) -> None:
        if event.kind == "done":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_audit(base, stop)
    assert [record.cell.attack for record in Shelf(base.out).records()] == ["ridge"]
    assert not list(base.out.glob("*.partial"))
    happened: list[tuple[str, str]] = []
    records = run_audit(base, lambda event: happened.append((event.kind, event.cell.attack)))
    assert [one for one in happened if one[0] != "share"] == [("skipped", "ridge"), ("done", "search")]
    assert all(record.complete for record in records)


class _Boom:
    """An attack whose error quotes the prompt."""

    card = AttackCard(
        name="boom", source="–", threat_model="–", needs=frozenset(), parameters={}, deviations="–", expected="–"
    )

    def build(self, spec: object) -> _Boom:
        return self

    def prepare(self, threat: object, progress: object) -> _Boom:
        return self

    def read(self, observation: object) -> Guess:
        raise RuntimeError("cannot read 'Is metformin safe with wine?'")


def test_a_failing_cell_takes_no_other_with_it(base: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTACKS._resolved, "boom", _Boom())
    events: list[Event] = []
    records = by_attack(run_audit(changed(base, attacks=("boom", "search")), events.append))
    assert records["search"].complete
    assert records["boom"].config.status == "error"
    assert records["boom"].config.reason is not None
    assert "RuntimeError in test_audit_run.py" in records["boom"].config.reason
    assert "metformin" not in "".join(path.read_text() for path in base.out.iterdir())
    assert not any("metformin" in event.detail for event in events)
    kinds: list[str] = []
    run_audit(changed(base, attacks=("boom", "search")), lambda event: kinds.append(event.kind))
    assert [kind for kind in kinds if kind != "share"] == ["skipped", "failed"]  # failures are tried again


def test_what_an_attacker_lacks_is_listed_and_not_dropped(base: Request) -> None:
    request = changed(base, threats=("W2", "W0", "W2:auxiliary=false"), attacks=("ridge",))
    records = run_audit(request)
    assert [record.config.status for record in records] == ["complete", "not applicable", "not applicable"]
    assert records[1].config.reason == "needs embedding, which W0 does not have"
    assert records[2].config.reason == "needs auxiliary, which W2:auxiliary=false does not have"


def test_a_public_base_is_the_attackers_copy(base: Request, tiny_with_text: Callable[[str], Path]) -> None:
    """With its own weights as base, W1 reads what W2 reads; with a stranger's, next to nothing."""
    same, other = f"W1:base={tiny_with_text('llama')}", f"W1:base={tiny_with_text('olmo2')}"
    records = {
        record.cell.threat: record.figures["token_accuracy"].value
        for record in run_audit(changed(base, threats=("W2", same, other), attacks=("search:limit=20",)))
    }
    assert records[same] == records["W2"] > 0.9
    assert records[other] < 0.5


def test_seeing_a_prompt_more_often_reads_more(base: Request) -> None:
    noisy = changed(base, defences=("gaussian:relative=1",), attacks=("ridge",), pairs=1920)
    once = run_audit(noisy)[0].figures["token_accuracy"].value
    often = run_audit(changed(noisy, repeats=9))[0].figures["token_accuracy"].value
    assert often > once + 0.1


def test_seeds_are_passes_over_the_same_prompts(base: Request) -> None:
    record = run_audit(changed(base, defences=("gaussian:relative=1",), attacks=("ridge",), seeds=2))[0]
    assert record.samples["seed"] == [0, 0, 0, 1, 1, 1]
    assert record.figures["token_accuracy"].n == 3
    first, second = record.samples["token_accuracy"][:3], record.samples["token_accuracy"][3:]
    assert first != second


def test_no_record_holds_texts(finished: Request) -> None:
    everything = "".join(path.read_text() for path in finished.out.iterdir())
    assert "wine" in everything  # an id
    assert not any(word in everything for word in ("metformin", "Ada", "euros", "capital"))


def test_texts_are_kept_only_on_request_and_for_their_owner(base: Request) -> None:
    for record in run_audit(changed(base, keep_texts=True)):
        path = base.out / f"{record.record.name}.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert record.samples["truth"] == [prompt["text"] for prompt in PROMPTS]
    assert by_attack(Shelf(base.out).records())["search"].samples["guess"] == [prompt["text"] for prompt in PROMPTS]
    for record in run_audit(changed(base, attacks=("search",))):  # asked for without: they are gone again
        assert not set(TEXTS) & set(record.samples)


def test_digests_of_prompts_tell_strangers_nothing(base: Request) -> None:
    first = run_audit(changed(base, attacks=("ridge",)))[0]
    second = run_audit(changed(base, attacks=("ridge",), out=base.out.parent / "other"))[0]
    assert first.config.prompts.digest != second.config.prompts.digest
    key = base.out / "prompts.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.chmod(0o644)
    with pytest.raises(InsecureError):
        run_audit(base)


def test_planted_secrets_are_scored(base: Request) -> None:
    records = by_attack(run_audit(changed(base, canaries=2)))
    assert records["search"].config.prompts.canaries == 2
    assert records["search"].figures["canary_exact_match"].value == 1.0
    assert records["search"].figures["canary_exact_match"].n == 2


def test_utility_is_added_without_attacking_again(base: Request) -> None:
    request = changed(base, attacks=("ridge",), defences=("none", "gaussian:relative=1"))
    before = run_audit(request)
    after = run_audit(changed(request, utility=True))
    for old, new in zip(before, after, strict=True):
        assert new.samples == old.samples
        assert new.record.created == old.record.created
    plain, noisy = (record.figures["perplexity_increase"] for record in after)
    assert plain.value == pytest.approx(0, abs=1e-3)  # no defence, no cost
    assert noisy.low < noisy.value < noisy.high  # a random model may gain by chance, so no sign is expected
    assert after[0].figures["kl"].value == pytest.approx(0, abs=1e-3)
    assert after[1].figures["kl"].low > 0.005
    assert after[1].figures["agreement"].value < after[0].figures["agreement"].value
    kinds: list[str] = []
    run_audit(changed(request, utility=True), lambda event: kinds.append(event.kind))
    assert [kind for kind in kinds if kind != "share"] == ["skipped", "skipped"]


def test_utility_that_fails_is_said_to(base: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "Utility", _Boom.read)
    record = run_audit(changed(base, attacks=("ridge",), utility=True))[0]
    assert record.complete
    assert "perplexity_increase" not in record.figures
    assert "Error" in record.config.unmeasured["perplexity_increase"]


def test_a_dead_worker_costs_its_own_cells_only(base: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run.run_jobs

    def sabotage(jobs: list[Job], processes: int, emit: Callable[[Event], None]) -> None:
        real([jobs[0], jobs[1]._replace(directory=Path("/nowhere"))], processes, emit)

    monkeypatch.setattr(run, "run_jobs", sabotage)
    events: list[Event] = []
    records = run_audit(changed(base, cuts=("1:-1", "2:-2"), attacks=("ridge",), jobs=2), events.append)
    assert [record.config.status for record in records] == ["complete", "error"]
    failed = [event for event in events if event.kind == "failed"]
    assert [event.cell.cut for event in failed] == ["2:-2"]
    assert "ended with code 1" in failed[0].detail


def test_a_directory_is_of_one_model(base: Request, tiny_with_text: Callable[[str], Path]) -> None:
    run_audit(changed(base, attacks=("ridge",)))
    with pytest.raises(InputError, match="choose another --out"):
        run_audit(changed(base, model=str(tiny_with_text("olmo2"))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cuts": ("2:9",)}, "outside a model of 6 layers"),
        ({"attacks": ("rigde",)}, "unknown name 'rigde'.*ridge"),
        ({"attacks": ("ridge:penalty=-1",)}, "penalty"),
        ({"defences": ("gausian",)}, "unknown name 'gausian'.*gaussian"),
        ({"threats": ("W3",)}, "unknown threat 'W3'"),
        ({"threats": ("W1",)}, "needs base=MODEL"),
        ({"codec": "fp8"}, "unknown name 'fp8'"),
        ({"pairs": 3}, "--pairs is 3"),
        ({"limit": 0}, "no prompts to attack"),
        ({"auxiliary": Path("/nowhere")}, "cannot read /nowhere"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_requests_are_refused_before_any_work(base: Request, wrong: dict[str, object], message: str) -> None:
    with pytest.raises((InputError, CutError, UnknownNameError), match=message):
        run_audit(changed(base, **wrong))
    assert not list(base.out.glob("audit-*.json"))


def test_wrong_counts_are_refused() -> None:
    for name in ("repeats", "seeds", "jobs"):
        with pytest.raises(InputError, match=f"--{name} is 0"):
            Request(**{name: 0})
    with pytest.raises(InputError, match="--canaries is -1"):
        Request(canaries=-1)


def test_expansion_covers_everything_once() -> None:
    cells = expand(6, ["2:-2", "2:4", "1:-1"], ["none", "gaussian:sigma=1"], ["ridge", "search"], ["W2", "W0"])
    assert len(cells) == 2 * 2 * 2 * 2
    assert len({cell.key for cell in cells}) == len(cells)
    assert cells[0] == Cell(cut="2:-2", span=Cut(2, 4, 6), defence="none", attack="ridge", threat="W2")
    with pytest.raises(InputError, match="empty"):
        expand(6, [])


def test_noise_is_met_with_a_language_model_and_an_early_stop_by_default() -> None:
    attacks = {(cell.defence, cell.attack) for cell in expand(6, ["2:-2"], ["none", "gaussian:sigma=1"])}
    assert ("gaussian:sigma=1", "map-beam") in attacks
    assert ("gaussian:sigma=1", "actinv:steps=50") in attacks
    assert ("none", "map-beam") not in attacks
    assert ("none", "search") in attacks


def test_a_defence_is_met_by_default_with_the_attack_it_has_to_survive() -> None:
    attacks = {(cell.defence, cell.attack) for cell in expand(6, ["2:-2"], ["pripert:beta=0.2", "permute:axis=rows"])}
    assert ("pripert:beta=0.2", "simulate-and-match") in attacks
    assert ("permute:axis=rows", "vma") in attacks
    assert ("permute:axis=rows", "simulate-and-match") not in attacks


def test_lists_may_hold_specifications_with_commas() -> None:
    assert split_specs(["ridge,search:width=64,limit=9", "mlp"]) == ["ridge", "search:width=64,limit=9", "mlp"]
    assert split_specs(["gaussian:epsilon=8,delta=1e-6,clip=40"]) == ["gaussian:epsilon=8,delta=1e-6,clip=40"]
    assert split_specs([]) == []


@pytest.mark.parametrize("text", ["W2", "W0", "W2:auxiliary=false,prior=false", "W1:base=some/model,prior=false"])
def test_threats_read_what_they_write(text: str) -> None:
    assert str(ThreatModel.parse(text)) == text
