"""Peak resident memory of client and server against the unsplit model and against what `plan` predicts.

Each process is measured by the kernel (VmHWM) after one prompt of some length. What Python, torch and transformers take
before any weight is loaded is measured in a process of its own and reported beside. Prints and writes ``memory``.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cyclopts import App
from rich.progress import track

from cutlayer.cli.server_process import ServerProcess
from cutlayer.models.conditions import Conditions
from cutlayer.models.cost import KV_POSITIONS, cut_cost, wire_bytes
from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.models.parameters import count_parameters
from cutlayer.records.record import exact, median, new_record
from cutlayer.types import Cut
from report import finish

app = App(help=__doc__)

_BASE = """
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.models.llama import modeling_llama
"""
_UNSPLIT = (
    _BASE
    + """
model = AutoModelForCausalLM.from_pretrained({directory!r}, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained({directory!r})
ids = torch.arange(100, 100 + {prompt})[None]
with torch.inference_mode():
    model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens={tokens}, eos_token_id=-1, do_sample=False)
"""
)
_CLIENT = """
from cutlayer.client.connect import connect
with connect({url!r}, keys={keys!r}) as client:
    client.generate(list(range(100, 100 + {prompt})), max_tokens={tokens}, ignore_eos=True).result()
"""
_REPORT = "\nimport re; print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"


@app.default
def memory(
    *, model: str = "smollm2-135m", prompt: int = 512, tokens: int = 32, repeats: int = 3, write: bool = True
) -> None:
    """Measure and record."""
    directory = locate(model)
    settings = {"directory": str(directory), "prompt": prompt, "tokens": tokens}
    peaks: dict[str, list[float]] = {"baseline": [], "unsplit": [], "client": [], "server": []}
    for _ in track(range(repeats), "memory"):
        peaks["baseline"].append(_peak_mb(_BASE))
        peaks["unsplit"].append(_peak_mb(_UNSPLIT.format(**settings)))
        with ServerProcess(model) as server:
            peaks["client"].append(_peak_mb(_CLIENT.format(url=server.url, keys=str(server.client_keys), **settings)))
            peaks["server"].append(_high_water_mb(server.pid))
    layers = read_config(directory)
    cut = Cut.parse("2:-2", layers.num_hidden_layers)
    conditions = Conditions(context=prompt + tokens, dtype="float32")
    parameters = count_parameters(layers)
    cost = cut_cost(parameters, cut, conditions, wire_bytes(parameters.hidden_size))
    positions = (prompt + tokens) / KV_POSITIONS
    plan_mb = {
        side: (part.weights.float32 + part.kv_bytes * positions) / 1e6
        for side, part in (("client", cost.client), ("server", cost.server))
    }
    figures = {f"{name}_peak_mb": median(values, "MB") for name, values in peaks.items()}
    for side, predicted in plan_mb.items():
        above = [peak - base for peak, base in zip(peaks[side], peaks["baseline"], strict=True)]
        figures[f"{side}_plan_mb"] = exact(predicted, "MB")
        figures[f"{side}_above_baseline_over_plan"] = median([value / predicted for value in above], "ratio")
        figures[f"{side}_over_unsplit"] = median(
            [mine / whole for mine, whole in zip(peaks[side], peaks["unsplit"], strict=True)], "ratio"
        )
    config = {
        "model": model, "cut": str(cut), "dtype": "float32", "prompt_tokens": prompt, "answer_tokens": tokens,
        "repeats": repeats, "baseline": "a process that has imported torch and transformers and loaded nothing",
    }  # fmt: skip
    finish(
        new_record("memory", "cutlayer bench memory", config, figures, {k: list(v) for k, v in peaks.items()}),
        write=write,
    )


def _peak_mb(program: str) -> float:
    done = subprocess.run([sys.executable, "-c", program + _REPORT], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1000


def _high_water_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1000


if __name__ == "__main__":
    app()
