"""Write the figures of README and docs from the committed records, or check that they are fresh.

A figure stands between two comments:  <!--fig RECORD.KEY FORMAT-->0.97<!--/-->
FORMAT is a Python format specification; ``low``, ``high`` or ``n`` after a second dot of KEY takes that part instead of
the value.

A table stands between  <!--rows RECORD COLUMN:FORMAT COLUMN:FORMAT …-->  and  <!--/rows-->, one line for each of the
record's ``config["rows"]``; its heading is written by hand above.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from cutlayer.records.record import read_record

ROOT = Path(__file__).parent.parent
FIGURE = re.compile(r"<!--fig ([a-z0-9_]+)\.([a-z0-9_]+)(?:\.(low|high|n))? ([^-]*)-->(.*?)<!--/-->", re.DOTALL)
ROWS = re.compile(r"(<!--rows ([a-z0-9_]+) ([^>]*)-->\n).*?(<!--/rows-->)", re.DOTALL)


@cache
def figures(record: str) -> dict[str, Any]:
    """Figures of a committed record."""
    return dict(read_record(ROOT / "benchmarks" / "records" / f"{record}.json").figures)


def fill(text: str) -> str:
    """The text with every figure as its record has it."""

    def value(match: re.Match[str]) -> str:
        record, key, part, form, _ = match.groups()
        number = getattr(figures(record)[key], part or "value")
        dotted = f"{key}.{part}" if part else key
        return f"<!--fig {record}.{dotted} {form}-->{format(number, form)}<!--/-->"

    def table(match: re.Match[str]) -> str:
        columns = [column.partition(":")[::2] for column in match[3].split()]
        rows = read_record(ROOT / "benchmarks" / "records" / f"{match[2]}.json").config["rows"]
        lines = ["| " + " | ".join(format(row[name], form) for name, form in columns) + " |\n" for row in rows]
        return match[1] + "".join(lines) + match[4]

    return FIGURE.sub(value, ROWS.sub(table, text))


def main() -> int:
    """With --check, return 1 if a file is stale; else rewrite stale files."""
    check = "--check" in sys.argv[1:]
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if new != old:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new, encoding="utf-8")
    for path in stale:
        sys.stdout.write(f"{'stale' if check else 'updated'}: {path}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
