"""One self-describing JSON file per run. Tables, plots and every figure in the docs are read from these.

A figure has a value, an interval, the number of samples behind it and a unit. What could not be measured is absent or an
error, never 0.
"""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from cutlayer.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PACKAGES: Final = ("cutlayer", "torch", "transformers", "safetensors", "websockets", "msgspec", "numpy")
_RESAMPLES: Final = 2000


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A measured number. `low` and `high` bound a 95 % interval; both equal `value` where nothing is estimated."""

    value: float
    low: float
    high: float
    n: int
    unit: str


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A run."""

    name: str
    command: str
    """Repeats it."""
    created: str
    """ISO 8601, UTC."""
    versions: dict[str, str]
    hardware: dict[str, Any]
    config: dict[str, Any]
    """Model, text, number of samples, seeds, settings."""
    figures: dict[str, Figure]
    samples: dict[str, list[Any]]
    """Raw values behind the figures."""


def new_record(
    name: str, command: str, config: dict[str, Any], figures: dict[str, Figure], samples: dict[str, list[Any]]
) -> Record:
    """A record of a run on this machine, now."""
    return Record(
        name=name,
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), **{package: version(package) for package in _PACKAGES}},
        hardware=hardware(),
        config=config,
        figures=figures,
        samples=samples,
    )


def write_record(record: Record, directory: Path) -> Path:
    """Write ``NAME.json`` atomically and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{record.name}.json"
    partial = path.with_suffix(".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    partial.replace(path)
    return path


def read_record(path: Path) -> Record:
    """Read and check a record.

    Raises:
        StoreError: missing or not a record.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Record)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is no record: {error}") from error


def hardware() -> dict[str, Any]:
    """Processor, usable cores and memory of this machine; nothing that names it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cpuinfo = Path("/proc/cpuinfo")
    model = platform.processor() or platform.machine()
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def exact(value: float, unit: str, n: int = 1) -> Figure:
    """A figure that is counted, not estimated."""
    return Figure(value, value, value, n, unit)


def quantile(values: Sequence[float], q: float, unit: str, seed: int = 0) -> Figure:
    """The q-quantile with a 95 % percentile-bootstrap interval.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("a quantile of no values")
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).choice(data, size=(_RESAMPLES, len(data)))
    low, high = np.quantile(np.quantile(draws, q, axis=1), [0.025, 0.975])
    return Figure(float(np.quantile(data, q)), float(low), float(high), len(data), unit)


def median(values: Sequence[float], unit: str) -> Figure:
    """The median with its interval."""
    return quantile(values, 0.5, unit)


def proportion(successes: float, n: int, unit: str = "fraction") -> Figure:
    """A share with its 95 % Wilson interval.

    Raises:
        ValueError: n is 0.
    """
    if n == 0:
        raise ValueError("a proportion of nothing")
    z = 1.959964
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # Rounding may put a bound of 0 or 1 on the wrong side of the share itself.
    return Figure(p, float(min(p, max(0.0, centre - half))), float(max(p, min(1.0, centre + half))), n, unit)
