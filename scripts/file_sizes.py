"""The budget for files: small enough to read in one sitting."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

MEDIAN, NINETIETH, LONGEST = 200, 450, 700


def main() -> int:
    """Return 1 if the source tree is over budget."""
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in Path("src").rglob("*.py")}
    lengths = sorted(sizes.values())
    median, ninetieth = statistics.median(lengths), lengths[int(0.9 * (len(lengths) - 1))]
    longest = max(sizes, key=lambda path: sizes[path])
    ok = median <= MEDIAN and ninetieth <= NINETIETH and sizes[longest] <= LONGEST
    sys.stdout.write(
        f"{len(sizes)} files: median {median:.0f} (≤ {MEDIAN}), p90 {ninetieth} (≤ {NINETIETH}), "
        f"longest {sizes[longest]} (≤ {LONGEST}) {longest}\n"
    )
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
