"""The clients people have, pointed at a gateway process in front of a server process: what works, and how true its scores are.

The openai SDK runs here; llm, lm-eval and inspect are programs of environments of their own, given as paths or found on the PATH.
Gateway process and lm-eval task are those of tests/end_to_end/test_openai_clients.py.
Prints and writes the record ``clients``.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import openai
import torch
from cyclopts import App
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from transformers import AutoModelForCausalLM, AutoTokenizer

from cutlayer.cli.server_process import ServerProcess
from cutlayer.models.locate import locate
from cutlayer.records.record import Figure, exact, new_record
from report import ROOT, command, finish

app = App(help=__doc__)

QUESTION: Final = "What is the capital of France?"
PLACE: Final = "The capital of France is"
INSPECT_TASK: Final = """\
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate


@task
def capitals():
    asked = {"What is the capital of France?": "Paris", "What is the capital of Italy?": "Rome"}
    samples = [Sample(input=question, target=place) for question, place in asked.items()]
    return Task(samples, solver=generate(), scorer=includes())
"""


class Checks:
    """What was tried and what came of it."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}
        self.details: dict[str, str] = {}
        self.scores: list[dict[str, float]] = []
        """Of lm-eval's choices, and of the same choices by the unsplit model."""

    def run(self, name: str, check: Callable[[], str]) -> None:
        """A check raises if it fails, and says in a few words what it saw."""
        try:
            self.details[name] = check()
            passed = True
        except Exception as error:
            self.details[name] = f"{type(error).__name__}: {str(error)[:600]}"
            passed = False
        self.figures[f"{name}_passed"] = exact(int(passed), "pass")
        sys.stderr.write(f"{name}: {'pass' if passed else 'FAIL'}: {self.details[name]}\n")


@app.default
def clients(
    *,
    model: str = "smollm2-135m",
    cut: str = "2:-2",
    llm: str = "llm",
    lm_eval: str = "lm_eval",
    inspect: str = "inspect",
    write: bool = True,
) -> None:
    """Run and record.

    Parameters
    ----------
    model
        Name of a pulled model.
    cut
        A:B, the server's layers.
    llm
        The program, or its path.
    lm_eval
        The program, or its path.
    inspect
        The program, or its path.
    write
        Whether to write the record.
    """
    sys.path.insert(0, str(ROOT))
    tests: Any = importlib.import_module("tests.end_to_end.test_openai_clients")
    directory = locate(model)
    unsplit = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    checks = Checks()
    programs = {"llm": shutil.which(llm), "lm_eval": shutil.which(lm_eval), "inspect": shutil.which(inspect)}
    with tempfile.TemporaryDirectory(prefix="cutlayer-clients-") as made, ServerProcess(model, cut) as server:
        folder = Path(made)
        gateway = tests.GatewayProcess(server, folder, "--sessions=2")
        try:
            _sdk(checks, openai.OpenAI(base_url=gateway.url, api_key=tests.KEY, max_retries=0, timeout=120), model)
            if programs["llm"]:
                for mode in ("stream", "no_stream"):
                    ask = partial(_llm, programs["llm"], gateway.url, tests.KEY, model, folder, mode)
                    checks.run(f"llm_{mode}", ask)
            if programs["lm_eval"]:
                checks.run(
                    "lm_eval",
                    lambda: _lm_eval(checks, programs["lm_eval"] or "", gateway.url, tests, model, directory, unsplit, folder),
                )  # fmt: skip
            if programs["inspect"]:
                checks.run(
                    "inspect", lambda: _inspect(programs["inspect"] or "", gateway.url, tests.KEY, model, folder)
                )
            code = gateway.stop()
            log = gateway.log()
        finally:
            if gateway.process.poll() is None:
                gateway.process.kill()
        checks.run("gateway_stopped_cleanly", lambda: _stopped(code, log))
    config = {
        "model": model, "cut": cut, "dtype": "float32", "defence": "none",
        "transport": "mutual TLS, loopback; gateway with an API key",
        "client_versions": _versions(programs), "missing": [name for name, program in programs.items() if program is None],
        "details": checks.details, "lm_eval_task": "three multiple-choice facts of our own, eight choices",
    }  # fmt: skip
    finish(
        new_record("clients", command("clients"), config, checks.figures, {"lm_eval_scores": checks.scores}),
        write=write,
    )


def _sdk(checks: Checks, client: openai.OpenAI, model: str) -> None:
    """The openai package: each of its ways to ask, and what must be refused."""
    asked: dict[str, Any] = {
        "model": model, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 24,
    }  # fmt: skip

    def chat() -> str:
        answer = client.chat.completions.create(**asked)
        ChatCompletion.model_validate(answer.model_dump(), strict=True)
        return _says_paris(answer.choices[0].message.content)

    def stream() -> str:
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        for chunk in chunks:
            ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        _expect(
            text == client.chat.completions.create(**asked).choices[0].message.content, "not the whole answer's text"
        )
        _expect(chunks[-1].usage is not None, "no usage at the end")
        return f"{len(chunks)} chunks, usage at the end"

    def completions() -> str:
        request: dict[str, Any] = {"model": model, "prompt": PLACE, "max_tokens": 4, "temperature": 0}
        text = client.completions.create(**request).choices[0].text
        streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**request, stream=True))
        _expect(streamed == text, f"streamed {streamed!r}, whole {text!r}")
        return _says_paris(text)

    def logprobs() -> str:
        answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3)
        listed = answer.choices[0].logprobs
        _expect(listed is not None and listed.content, "no logprobs")
        entries = listed.content if listed is not None and listed.content else []
        _expect("".join(e.token for e in entries) == answer.choices[0].message.content, "tokens are not the text")
        _expect(all(len(e.top_logprobs) == 3 and e.logprob <= 0 for e in entries), "not three each")
        echoed = client.completions.create(model=model, prompt=PLACE, max_tokens=0, echo=True, logprobs=1)
        scores = echoed.choices[0].logprobs
        _expect(scores is not None and scores.token_logprobs, "no echoed logprobs")
        return f"{len(entries)} tokens of chat; {len((scores.token_logprobs if scores else None) or [])} echoed"

    def tools() -> str:
        wanted: Any = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
        try:
            client.chat.completions.create(**asked, tools=wanted)
        except openai.BadRequestError as error:
            _expect(error.param == "tools", f"param {error.param}")
            return f"refused: {error.message}"
        raise AssertionError("tools were accepted")

    for check in (chat, stream, completions, logprobs, tools):
        checks.run(f"openai_{check.__name__}", check)


def _llm(program: str, url: str, key: str, model: str, folder: Path, mode: str) -> str:
    (folder / "extra-openai-models.yaml").write_text(
        f"- model_id: private\n  model_name: {model}\n  api_base: {url}\n  api_key_name: gateway\n"
    )
    (folder / "keys.json").write_text(json.dumps({"gateway": key}))
    options = ["--no-stream"] if mode == "no_stream" else []
    return _says_paris(
        _run([program, "-m", "private", "-o", "temperature", "0", QUESTION, *options], LLM_USER_PATH=str(folder))
    )


def _lm_eval(
    checks: Checks, program: str, url: str, tests: Any, model: str, directory: Path, unsplit: Any, folder: Path
) -> str:
    """Scores of choices, each a sum of log-probabilities, against those of the whole model."""
    (folder / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in tests.FACTS))
    (folder / "facts.yaml").write_text(tests.TASK.format(file=folder / "facts.jsonl"))
    arguments = f"model={model},base_url={url}/completions,tokenizer={directory},tokenizer_backend=huggingface"
    call = [program, "--model", "local-completions", "--model_args", arguments, "--tasks", "facts"]
    call += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    _run(call, OPENAI_API_KEY=tests.KEY, HF_HUB_OFFLINE="1", HF_HOME=str(folder / "hf"))
    [samples] = (folder / "out").rglob("samples_*.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    differences: list[float] = []
    for sample in map(json.loads, samples.read_text().splitlines()):
        for choice, [(score, greedy)] in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            before, whole = (tokenizer(text)["input_ids"] for text in (sample["doc"]["q"], sample["doc"]["q"] + choice))
            with torch.inference_mode():
                logprobs = unsplit(torch.tensor([whole])).logits[0].log_softmax(-1)  # [T, V]
            ours = range(len(before), len(whole))
            expected = sum(float(logprobs[at - 1, whole[at]]) for at in ours)
            checks.scores.append({"lm_eval": float(score), "unsplit": expected})
            differences.append(abs(float(score) - expected))
            same = all(int(logprobs[at - 1].argmax()) == whole[at] for at in ours)
            _expect(str(greedy) == str(same), f"greedy differs at {choice!r}")
    checks.figures["lm_eval_largest_score_difference"] = exact(max(differences), "nats", len(differences))
    _expect(max(differences) < tests.TOLERANCE, f"a score differs by {max(differences)}")
    return f"{len(differences)} scores, the largest difference {max(differences):.2e} nats, greedy flags the same"


def _inspect(program: str, url: str, key: str, model: str, folder: Path) -> str:
    (folder / "capitals.py").write_text(INSPECT_TASK)
    call = [program, "eval", "capitals.py", "--model", f"openai-api/cutlayer/{model}", "--log-dir", "logs"]
    call += ["--log-format", "json", "--display", "plain", "--temperature", "0", "--max-tokens", "24"]
    said = _run(call, folder, CUTLAYER_API_KEY=key, CUTLAYER_BASE_URL=url)
    [log] = (folder / "logs").glob("*.json")
    record = json.loads(log.read_text())
    _expect(record["status"] == "success", f"{record['status']}: {record.get('error') or said[-300:]}")
    [metric] = [score["metrics"]["accuracy"]["value"] for score in record["results"]["scores"]]
    return f"{record['results']['completed_samples']} samples, accuracy {metric:g}"


def _stopped(code: int, log: str) -> str:
    _expect(code == 0, f"exit code {code}")
    _expect("Traceback" not in log, "a traceback in its log")
    return "exit code 0, no traceback"


def _run(call: list[str], folder: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        call, env={**os.environ, **environment}, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    _expect(done.returncode == 0, f"exit code {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
    return done.stdout


def _says_paris(text: str | None) -> str:
    _expect(text is not None and "Paris" in text, f"no Paris in {text!r}")
    return (text or "").strip()


def _expect(condition: object, otherwise: str) -> None:
    if not condition:
        raise AssertionError(otherwise)


def _versions(programs: dict[str, str | None]) -> dict[str, str]:
    found = {"openai": openai.__version__}
    for name, program in programs.items():
        if program is not None:
            package = {"lm_eval": "lm-eval", "inspect": "inspect-ai"}.get(name, name)
            script = f"import importlib.metadata as m; print(m.version({package!r}))"
            done = subprocess.run(
                [str(Path(program).parent / "python"), "-c", script], capture_output=True, text=True, check=False
            )
            found[package] = done.stdout.strip() or "unknown"
    return found


if __name__ == "__main__":
    app()
