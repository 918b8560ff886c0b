"""How long `cutlayer audit run` with its defaults takes, and how large the page of its report is.

Both commands run as a user runs them, in processes of their own. Prints and writes the record ``default_audit``; keeps the
page where it is told to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from cyclopts import App

from cutlayer.records.record import Figure, exact, new_record
from report import command, finish

app = App(help=__doc__)


@app.default
def default_audit(*, model: str = "smollm2-135m", page: Path | None = None, write: bool = True) -> None:
    """Measure and record.

    Parameters
    ----------
    model
        Name or directory.
    page
        Where the report's page is to be kept.
    write
        Whether to write the record.
    """
    with tempfile.TemporaryDirectory() as folder:
        records, html = Path(folder) / "audit", page or Path(folder) / "report.html"
        seconds, audit = _timed("audit", "run", model, "--out", str(records), "--json")
        page_seconds, report = _timed("audit", "report", str(records), "--html", str(html), "--json")
        size = html.stat().st_size
    figures: dict[str, Figure] = {
        "audit_s": exact(seconds, "s"),
        "report_s": exact(page_seconds, "s"),
        "page_bytes": exact(size, "bytes"),
        "cells": exact(len(audit["cells"]), "count"),
    }
    config = {
        "model": model, "prompts": "the study's own, as many as the default takes",
        "verdict": report["verdict"], "settings": report["settings"],
        "cores": os.cpu_count(), "threads": torch.get_num_threads(), "load_average": os.getloadavg(),
    }  # fmt: skip
    finish(new_record("default_audit", command("default_audit"), config, figures, audit), write=write)


def _timed(*arguments: str) -> tuple[float, Any]:
    """Seconds, and what was printed."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "cutlayer", *arguments], stdout=subprocess.PIPE, check=True, text=True)
    return time.perf_counter() - started, json.loads(done.stdout)


if __name__ == "__main__":
    app()
