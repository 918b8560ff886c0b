"""What the offline transformation costs: time per billion parameters, and peak memory against its largest tensor.

Each export runs in a process of its own, whose peak is the kernel's (VmHWM). What Python, torch and transformers take before any
tensor is read is measured in another process and subtracted. The bound is 3 × the largest tensor + the keys of the hidden basis.
A second, synthetic checkpoint of random bfloat16 weights is written below the temporary directory, where there is room.
Prints and writes ``obfuscation_cost``.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import torch
from cyclopts import App
from rich.progress import track
from transformers import LlamaConfig

from cutlayer.models.checkpoint import Checkpoint
from cutlayer.models.locate import locate
from cutlayer.models.parts import empty_model
from cutlayer.obfuscation.shards import Entry, index, plan_shards, write_shard
from cutlayer.records.record import Figure, exact, median, new_record
from report import command, finish

app = App(help=__doc__)

_IMPORTS: Final = """
import json, re, sys, time
from pathlib import Path
import torch, transformers
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keys import create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.models.family import read_config
base, target = map(Path, sys.argv[1:])
read_config(base)
took = worked = None
"""
_EXPORT: Final = """
settings = choose(base)
key = create_owner_key(base, settings)
started, worked = time.perf_counter(), time.process_time()
export(base, target, key)
took, worked = time.perf_counter() - started, time.process_time() - worked
"""
_REPORT: Final = """
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps({"seconds": took, "cpu": worked, "peak": peak}))
"""
_BYTES: Final = {"F32": 4, "BF16": 2, "F16": 2}

# The shapes of a llama of 1.1 billion parameters.
_SYNTHETIC: Final = LlamaConfig(
    architectures=["LlamaForCausalLM"],
    vocab_size=32_000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
)


@app.default
def obfuscation_cost(
    *, model: str = "smollm2-135m", repeats: int = 3, synthetic: bool = True, write: bool = True
) -> None:
    """Measure and record."""
    figures: dict[str, Figure] = {}
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        _measure("real", locate(model), Path(folder), repeats, figures, samples)
        if synthetic:
            base = Path(folder) / "synthetic"
            _write_synthetic(base)
            _measure("synthetic", base, Path(folder), 1, figures, samples)
    config = {
        "model": model, "repeats": repeats, "mode": "exact", "hidden_size": "that of the base",
        "threads": torch.get_num_threads(), "synthetic": _SYNTHETIC.to_diff_dict() if synthetic else None,
        "bound": "3 x the largest tensor + 2 x d x D x 8 bytes of keys",
    }  # fmt: skip
    finish(new_record("obfuscation_cost", command("obfuscation_cost"), config, figures, samples), write=write)


def _measure(
    name: str, base: Path, folder: Path, repeats: int, figures: dict[str, Figure], samples: dict[str, list[float]]
) -> None:
    headers = Checkpoint(base).headers().values()
    parameters = sum(math.prod(header.shape) for header in headers)
    largest = max(math.prod(header.shape) * _BYTES[header.dtype] for header in headers)
    width = json.loads((base / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    keys = 2 * width * width * 8
    seconds, worked, peaks = [], [], []
    for _ in track(range(repeats), name):
        idle = _run(_IMPORTS + _REPORT, base, folder / "out")["peak"]
        found = _run(_IMPORTS + _EXPORT + _REPORT, base, folder / "out")
        shutil.rmtree(folder / "out")
        seconds.append(found["seconds"] / parameters * 1e9)
        worked.append(found["cpu"] / parameters * 1e9)
        peaks.append(found["peak"] - idle)
    samples[f"{name}_seconds_per_billion_parameters"] = seconds
    samples[f"{name}_cpu_seconds_per_billion_parameters"] = worked
    samples[f"{name}_peak_bytes_above_idle"] = peaks
    figures[f"{name}_parameters"] = exact(parameters, "parameters")
    figures[f"{name}_largest_tensor_mb"] = exact(largest / 1e6, "MB")
    figures[f"{name}_keys_mb"] = exact(keys / 1e6, "MB")
    figures[f"{name}_seconds_per_billion_parameters"] = median(seconds, "s")
    figures[f"{name}_cpu_seconds_per_billion_parameters"] = median(worked, "s")
    figures[f"{name}_peak_mb"] = median([peak / 1e6 for peak in peaks], "MB")
    figures[f"{name}_peak_over_largest_tensor"] = median([peak / largest for peak in peaks], "ratio")
    figures[f"{name}_peak_over_bound"] = median([peak / (3 * largest + keys) for peak in peaks], "ratio")


def _run(program: str, base: Path, target: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(base), str(target)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _write_synthetic(directory: Path) -> None:
    """Random weights of the scale that trained ones have, one tensor at a time."""
    directory.mkdir()
    entries = [Entry(name, tuple(held.shape)) for name, held in empty_model(_SYNTHETIC).named_parameters()]
    shards = plan_shards(entries, "bfloat16", 1_000_000_000)
    needed = sum(2 * math.prod(entry.shape) for entry in entries)
    if shutil.disk_usage(directory).free < 3 * needed:
        raise SystemExit(f"{directory} has no room for {3 * needed / 1e9:.0f} GB; set TMPDIR, or --no-synthetic")
    drawn = torch.Generator().manual_seed(0)
    for shard in shards:
        for _ in write_shard(
            shard, directory, lambda entry: (0.02 * torch.randn(entry.shape, generator=drawn)).bfloat16()
        ):
            pass
    located = index(shards)
    if located is not None:
        (directory / located[0]).write_text(located[1], encoding="utf-8")
    _SYNTHETIC.save_pretrained(directory)


if __name__ == "__main__":
    app()
