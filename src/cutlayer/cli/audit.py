"""`cutlayer audit`: measure what a server can read, and report, compare, gate and choose by what was measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from cutlayer.types import DEFAULT_CUT

if TYPE_CHECKING:
    from cutlayer.audit.cell_record import CellRecord

app = App(name="audit", help="Measure what a server can read at a cut.")

_List = Annotated[tuple[str, ...], Parameter(negative="", show_default=" ".join, allow_leading_hyphen=True)]
_DefaultsElsewhere = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
_Flag = Annotated[bool, Parameter(negative=())]


@app.command
def run(
    model: str = "smollm2-135m",
    *,
    cut: _List = (DEFAULT_CUT,),
    defence: _List = ("none",),
    attack: _DefaultsElsewhere = (),
    threat: _List = ("W2",),
    prompts: Path | None = None,
    limit: int | None = None,
    canaries: int = 0,
    auxiliary: Path | None = None,
    pairs: int = 60_000,
    repeats: int = 1,
    seeds: int = 1,
    codec: str = "fp32",
    out: Path = Path("audit"),
    jobs: int = 1,
    device: str = "cpu",
    utility: _Flag = False,
    keep_texts: _Flag = False,
    fresh: _Flag = False,
    json: _Flag = False,
) -> int:
    """Attack prompts at every cut, with every defence, and record what was read.

    Lists may be given with commas or by repeating the option. What is finished is kept: run the same again after an
    interruption and it goes on. Exit code 1 when a cell failed.

    Args:
        model: a pulled model, a directory, or hf:ORG/NAME.
        cut: A:B, the layers the server runs.
        defence: e.g. none or gaussian:relative=0.5.
        attack: e.g. ridge or search:width=128 (default: nearest, ridge, mlp, search; with a defence also map-beam and
            actinv:steps=50, with permute vma, with pripert simulate-and-match).
        threat: who attacks: W2 (public weights), W1:base=MODEL (private fine-tune of a public base), W0 (no weights); each with
            auxiliary=false (no text of its own) or prior=false (no language model).
        prompts: JSON Lines of {"text": …}; default: 50 of the study's own.
        limit: attack the first so many prompts.
        canaries: add so many prompts with planted secrets.
        auxiliary: UTF-8 text the attacker owns; default: encyclopedia text, where installed.
        pairs: tokens of the attacker's own text (200000 for studies).
        repeats: sessions in which the server sees each prompt.
        seeds: passes with fresh noise and freshly trained attacks; their mean counts.
        codec: of the wire: fp32, bf16, fp16, int8 or int4.
        out: directory of the records.
        jobs: cuts measured at the same time.
        device: where layers and attacks run.
        utility: also measure what each defence costs in perplexity.
        keep_texts: keep prompts and guesses in the records, which only you can read then.
        fresh: measure again what is there.
        json: print one JSON object with the figures of every cell.
    """
    from cutlayer.audit.grid import split_specs
    from cutlayer.audit.request import Request
    from cutlayer.audit.run import run_audit
    from cutlayer.cli.audit_progress import AuditProgress

    request = Request(
        model=model,
        cuts=tuple(split_specs(cut)),
        defences=tuple(split_specs(defence)),
        attacks=tuple(split_specs(attack)) or None,
        threats=tuple(split_specs(threat)),
        prompts=prompts,
        limit=limit,
        canaries=canaries,
        auxiliary=auxiliary,
        pairs=pairs,
        repeats=repeats,
        seeds=seeds,
        codec=codec,
        out=out,
        jobs=jobs,
        device=device,
        keep_texts=keep_texts,
        utility=utility,
        fresh=fresh,
    )
    with AuditProgress(out) as progress:
        records = run_audit(request, progress)
    if json:
        from cutlayer.audit.report.plain import cells_of

        _print_json(cells_of(records))
    else:
        _show(records)
        sys.stdout.write(
            f"\nRecords are in {out}; `cutlayer audit report {out} --html report.html` makes a page of them.\n"
        )
    return 1 if any(record.config.status == "error" for record in records) else 0


@app.command
def report(directory: Path = Path("audit"), /, *, html: Path | None = None, json: _Flag = False) -> int:
    """Show what was measured, and the verdict.

    Args:
        directory: records of `cutlayer audit run`.
        html: also write one self-contained page here.
        json: print one JSON object instead of tables.
    """
    records = _records(directory)
    if html is not None:
        from cutlayer.audit.report.file import write_page

        write_page(records, html)
    if json:
        from cutlayer.audit.report.plain import report_of

        _print_json(report_of(records))
    else:
        _show(records)
        if html is not None:
            sys.stdout.write(f"\nwrote {html}\n")
    return 0


@app.command
def diff(first: Path, second: Path, /, *, json: _Flag = False) -> int:
    """What changed between two audits, cell by cell, with paired 95 % intervals.

    Args:
        first: records of the earlier audit.
        second: records of the later one.
        json: print one JSON object instead of a table.
    """
    from cutlayer.audit.difference import compare

    differences = compare(_records(first), _records(second))
    if json:
        from cutlayer.audit.report.differences import plain_differences

        _print_json(plain_differences(differences))
    else:
        from rich.console import Console

        from cutlayer.audit.report.differences import show_differences

        show_differences(differences, Console(highlight=False))
    return 0


@app.command
def gate(directory: Path = Path("audit"), /, *, max_advantage: float = 0.25, junit: Path | None = None) -> int:
    """Pass or fail for CI: exit code 1 when an attack reads too much, or a cell failed or is missing.

    Args:
        directory: records of `cutlayer audit run`.
        max_advantage: most advantage over the baseline that any attack may have, in tokens.
        junit: write JUnit XML here.
    """
    from rich.console import Console

    from cutlayer.audit.gate import judge
    from cutlayer.audit.gate import junit as junit_xml
    from cutlayer.audit.report.judgement import show_judgement
    from cutlayer.audit.shelf import Shelf
    from cutlayer.errors import InputError

    if not -1 <= max_advantage <= 1:
        raise InputError(f"--max-advantage is {max_advantage}; it must be between -1 and 1")
    judgement = judge(_records(directory), Shelf(directory).plan(), max_advantage)
    if junit is not None:
        from cutlayer.audit.report.file import write_file

        write_file(junit, junit_xml(judgement, max_advantage))
    show_judgement(judgement, Console(highlight=False))
    return 0 if judgement.passed else 1


@app.command
def recommend(
    directory: Path = Path("audit"),
    /,
    *,
    max_advantage: float = 0.25,
    max_perplexity_increase: float = 0.05,
    json: _Flag = False,
) -> int:
    """The frontier of leakage, utility and client memory, and the setting to choose, if any meets the bounds.

    Args:
        directory: records of `cutlayer audit run --utility`.
        max_advantage: most advantage over the baseline of any attack, in tokens.
        max_perplexity_increase: most relative increase of perplexity.
        json: print one JSON object instead of a table.
    """
    from cutlayer.audit.recommendation import recommend as choose
    from cutlayer.audit.report.settings import Bar, settings_of

    bar = Bar(advantage=max_advantage, perplexity_increase=max_perplexity_increase)
    recommendation = choose(settings_of(_records(directory)), bar)
    if json:
        from cutlayer.audit.report.choices import plain_recommendation

        _print_json(plain_recommendation(recommendation))
    else:
        from rich.console import Console

        from cutlayer.audit.report.choices import show_recommendation

        show_recommendation(recommendation, Console(highlight=False))
    return 0


def _records(directory: Path) -> list[CellRecord]:
    from cutlayer.audit.shelf import Shelf

    return Shelf(directory).records()


def _show(records: list[CellRecord]) -> None:
    from rich.console import Console

    from cutlayer.audit.report.terminal import show_report

    show_report(records, Console(highlight=False))


def _print_json(value: Any) -> None:
    import msgspec

    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
