"""`cutlayer bench NAME`: run a benchmark of this checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutlayer.errors import InputError, UnknownNameError


def bench(name: str, /, *options: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    """Run a benchmark and write its record. Options after the name go to the benchmark; NAME --help lists them.

    Parameters
    ----------
    name
        A script of this checkout's benchmarks folder, e.g. overhead.
    options
        Passed on.
    """
    folder = Path(__file__).parents[3] / "benchmarks"
    if not folder.is_dir():
        raise InputError("benchmarks come with a source checkout of cutlayer, not with an installed package; clone it")
    # What has no main is shared by those that do.
    names = sorted(path.stem for path in folder.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
    if name not in names:
        raise UnknownNameError(f"unknown name {name!r} among benchmarks; available: {', '.join(names)}")
    return subprocess.run([sys.executable, str(folder / f"{name}.py"), *options], check=False).returncode  # noqa: S603
