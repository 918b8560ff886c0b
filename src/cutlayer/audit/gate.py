"""Whether an audit may pass: every cell that was asked for is there, and no attack reads more than is allowed.

The point estimate decides, and the interval is stated: with few prompts a gate that asked the upper end to be low would
fail on chance alone, and one that hid it would pass on chance alone.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree  # builds a document of our own; nothing is parsed
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from cutlayer.audit.report.settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.audit.cell_record import CellRecord
    from cutlayer.audit.grid import Cell
    from cutlayer.audit.shelf import Plan

_NOT_XML: Final = re.compile(r"[^\t\n\r\x20-\uD7FF\uE000-\uFFFD\U00010000-\U0010FFFF]")


class Check(NamedTuple):
    """One cell against the bound."""

    cell: Cell
    outcome: Literal["pass", "fail", "error", "skip"]
    words: str
    seconds: float = 0.0


class Judgement(NamedTuple):
    """All cells against the bound."""

    checks: list[Check]
    warnings: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing failed, nothing is missing, and something was measured in every setting."""
        return all(check.outcome in ("pass", "skip") for check in self.checks)


def judge(records: Sequence[CellRecord], plan: Plan | None, max_advantage: float) -> Judgement:
    """Hold every cell against the bound.

    Args:
        records: of one directory.
        plan: what was asked for there, if it is known.
        max_advantage: most advantage any attack may have.
    """
    checks = [_check(record, max_advantage) for record in records]
    there = {record.cell.key for record in records}
    checks += [
        Check(cell, "error", "it was asked for but has no record; run the audit again to complete it")
        for cell in (plan.cells if plan else ())
        if cell.key not in there
    ]
    warnings = []
    for setting in settings_of(records):
        if not setting.cells and not any(record.config.status == "error" for record in setting.without):
            cell = setting.without[0].cell
            checks.append(Check(cell, "error", f"no attack could be run on {setting.name}, so nothing is known of it"))
        elif not setting.adapted:
            warnings.append(
                f"{setting.name} was tried only by attacks that ignore the defence; its figures do not show safety"
            )
    if plan is None:
        warnings.append("there is no plan.json, so a missing cell would not be noticed")
    return Judgement(checks, warnings)


def junit(judgement: Judgement, max_advantage: float) -> bytes:
    """The judgement as JUnit XML: one test case per cell."""
    outcomes = [check.outcome for check in judgement.checks]
    counts = {
        "tests": str(len(outcomes)),
        "failures": str(outcomes.count("fail")),
        "errors": str(outcomes.count("error")),
        "skipped": str(outcomes.count("skip")),
        "time": f"{sum(check.seconds for check in judgement.checks):.3f}",
    }
    root = ElementTree.Element("testsuites", {"name": "cutlayer audit gate", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": f"advantage at most {max_advantage:g}", **counts})
    for check in judgement.checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            {
                "classname": _clean(f"cut {check.cell.cut}, {check.cell.defence}"),
                "name": _clean(f"{check.cell.attack} as {check.cell.threat}"),
                "time": f"{check.seconds:.3f}",
            },
        )
        tag = {"fail": "failure", "error": "error", "skip": "skipped", "pass": "system-out"}[check.outcome]
        element = ElementTree.SubElement(case, tag, {} if tag == "system-out" else {"message": _clean(check.words)})
        if tag != "skipped":
            element.text = _clean(check.words)
    if judgement.warnings:
        ElementTree.SubElement(suite, "system-err").text = _clean("\n".join(judgement.warnings))
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document + b"\n"


def _check(record: CellRecord, max_advantage: float) -> Check:
    config, figure = record.config, record.leakage
    if config.status == "error":
        return Check(record.cell, "error", config.reason or "it failed", config.seconds)
    if config.status == "not applicable":
        return Check(record.cell, "skip", config.reason or "not applicable")
    if figure is None:
        reason = config.unmeasured.get("advantage", "the record has none")
        return Check(record.cell, "error", f"its advantage is not measured: {reason}", config.seconds)
    words = f"advantage {figure.value:.3f} ({figure.low:.3f}–{figure.high:.3f}), allowed {max_advantage:g}"
    if figure.value > max_advantage:
        return Check(record.cell, "fail", words, config.seconds)
    unsure = "; the interval reaches above the bound" if figure.high > max_advantage else ""
    return Check(record.cell, "pass", words + unsure, config.seconds)


def _clean(text: str) -> str:
    """Without characters that XML cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)
