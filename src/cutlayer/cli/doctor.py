"""`cutlayer doctor`: what crossed the network on your own run, checked."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter

from cutlayer.cli.client_options import ConnectOptions

if TYPE_CHECKING:
    from rich.text import Text

    from cutlayer.audit.finding import Diagnosis, Finding

_MARKS: Final[dict[str, tuple[str, str]]] = {
    "ok": ("✓", "green"),
    "warning": ("!", "yellow"),
    "fail": ("✗", "bold red"),
}


def doctor(
    *,
    at: ConnectOptions,
    prompt: str | None = None,
    max_tokens: int = 16,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Run a short generation, record every frame, and check that nothing but hidden states left.

    Exit code 0 when no check failed (warnings are allowed), 1 when one did.

    Parameters
    ----------
    at
        Server and model.
    prompt
        What to ask; default: a random phrase that can be recognised. Never printed.
    max_tokens
        The answer's longest length.
    json
        Print one JSON object with all findings and their evidence.
    """
    diagnosis = _diagnose(at, prompt, max_tokens)
    if json:
        import msgspec

        report = {
            "ok": not diagnosis.failed,
            "failed": diagnosis.failed,
            **msgspec.to_builtins(diagnosis),
        }
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(diagnosis)
    return diagnosis.exit_code


def _diagnose(at: ConnectOptions, prompt: str | None, max_tokens: int) -> Diagnosis:
    from rich.console import Console

    with Console(stderr=True).status("connecting, generating and checking"):
        from cutlayer.audit.doctor import diagnose
        from cutlayer.audit.stranger import check_access

        connect = at.dialler()
        return diagnose(
            connect,
            at.server,
            options=at.options(),
            prompt=prompt,
            max_tokens=max_tokens,
            access=lambda: check_access(at.server, **at.credentials()),
        )


def _show(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    heading = " · ".join(
        part for part in (diagnosis.model, diagnosis.cut and f"cut {diagnosis.cut}", diagnosis.server) if part
    )
    console.print(Text(heading, style="bold"), end="\n\n")
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for finding in diagnosis.findings:
        table.add_row(*_row(finding))
    console.print(table)
    counts = {status: sum(finding.status == status for finding in diagnosis.findings) for status in _MARKS}
    console.print(f"\n{counts['ok']} ok, {counts['warning']} to know about, {counts['fail']} failed.\n")
    for title, words in (
        ("What crossed", diagnosis.crossed),
        ("What the server never had", diagnosis.never_crossed),
        ("What this does not show", diagnosis.caveat),
    ):
        if words:
            console.print(Text.assemble((f"{title}: ", "bold"), words), end="\n\n")
    if diagnosis.canary is not None:
        console.print(Text(f"The canary of this run was: {diagnosis.canary}"))


def _row(finding: Finding) -> tuple[Text, Text, Text]:
    from rich.text import Text

    mark, style = _MARKS[finding.status]
    return Text(mark, style=style), Text(finding.name, style=style), Text(finding.explanation)
