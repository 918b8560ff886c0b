"""The same model answering the same prompts in four ways: unsplit, through cutlayer, in llama.cpp's engine, in language-pipes.

All run on this machine, in this run, prompt by prompt in turn, greedy, with the same token ids. The peers are no dependencies
of this project: `--peers` is the interpreter of an environment that has them, and who is missing is named in the record.
Prints and writes the record ``peers``.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import httpx2
import torch
from cyclopts import App, Parameter
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Client, Options, connect
from cutlayer.errors import InputError
from cutlayer.models.locate import locate
from cutlayer.records.record import Figure, exact, median, new_record
from cutlayer.text.tokenizer import Message, Tokenizer
from report import PROMPTS, command, finish, prompt_texts

app = App(help=__doc__)

SCRIPTS: Final = Path(__file__).parent / "peer_scripts"
_LOCAL_LAYERS: Final = 2
"""Of language-pipes' end model: as many as cutlayer's client keeps before the server's."""


class Answer(NamedTuple):
    """One answer, timed from the request."""

    first_s: float
    last_s: float
    tokens: int
    ids: list[int] | None = None
    decode_bytes: float | None = None
    """That crossed between machines after the first token, both directions; None where nothing crosses."""


class Peer(ABC):
    """One way to run the model."""

    dtype: str
    remote_sees: str

    @abstractmethod
    def answer(self, text: str, ids: list[int], tokens: int) -> Answer:
        """Greedily, and past the end of the text where that can be asked for."""


@app.default
def peers(
    *,
    peers: Path | None = None,
    gguf: Path | None = None,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    prompts: int = 8,
    tokens: int = 64,
    threads: int = 1,
    write: bool = True,
) -> None:
    """Measure and record.

    Parameters
    ----------
    peers
        Python of an environment with xllamacpp and language-pipes (see the record's `environment`).
    gguf
        The model as a GGUF file: the one `cutlayer pull` starts from. Without it llama.cpp's engine is left out.
    model
        Name or directory, the same weights.
    cut
        Of cutlayer.
    prompts
        How many.
    tokens
        Of each answer.
    threads
        Of every process.
    write
        Whether to write the record.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # of the processes started here
    torch.set_num_threads(threads)
    directory = locate(model)
    tokenizer = Tokenizer(directory)
    missing: dict[str, str] = {}
    answers: dict[str, list[Answer]] = {}
    with contextlib.ExitStack() as stack:
        ways = _ways(stack, directory, model, cut, threads, peers, gguf, missing)
        texts = prompt_texts(prompts)
        for number, text in enumerate([texts[0], *texts]):  # the first of all is for warming up
            ids = tokenizer.render([Message("user", text)])
            for name in list(ways):
                try:
                    answer = ways[name].answer(text, ids, tokens if number else 8)
                except (OSError, RuntimeError, httpx2.HTTPError) as error:
                    missing[name] = f"failed at prompt {number}: {type(error).__name__}: {error}"
                    sys.stderr.write(f"{name} {missing[name]}\n")
                    del ways[name]
                    continue
                if number:
                    answers.setdefault(name, []).append(answer)
                    sys.stderr.write(f"{number} {name}: {answer.tokens} tokens in {answer.last_s:.2f} s\n")
        about = {name: {"dtype": way.dtype, "remote_sees": way.remote_sees} for name, way in ways.items()}
        versions = _versions(peers)
    figures, samples = _figures(
        {name: found for name, found in answers.items() if name not in missing}, tokenizer.stop_ids
    )
    config = {
        "model": model, "cut": cut, "prompts": prompts, "tokens_per_answer": tokens, "text": PROMPTS,
        "threads_per_process": threads, "about": about, "missing": missing, "peer_versions": versions,
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"), "load_average": os.getloadavg(),
        "environment": "python -m venv; pip install language-pipes==2.5.0 xllamacpp==2026.10.11549 torch==2.13.0",
        "order": "prompt by prompt, all ways in turn, one process at work at a time",
        "language_pipes": f"two nodes on loopback, AES, {_LOCAL_LAYERS} layers, norm and head on the user's node; it knows only "
        "bfloat16 and cannot be told to go on after the end of the text, so its answers may be shorter",
        "bytes": "cutlayer: frames of an answer of 64 tokens less those of one of 2. language-pipes: HTTP requests of both "
        "nodes, headers included, after the first token",
    }  # fmt: skip
    finish(new_record("peers", command("peers"), config, figures, samples), write=write)


def _ways(
    stack: contextlib.ExitStack, directory: Path, model: str, cut: str, threads: int, python: Path | None, gguf: Path | None,
    missing: dict[str, str],
) -> dict[str, Peer]:  # fmt: skip
    """Everything that can run here; why the rest cannot goes to `missing`."""
    ways: dict[str, Peer] = {"transformers_float32": Unsplit(directory)}
    for dtype in ("float32", "bfloat16"):
        ways[f"cutlayer_{dtype}"] = Split(stack, model, cut, dtype)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cutlayer-peers-")))
    if python is None:
        missing["xllamacpp"] = missing["language_pipes"] = "no --peers PYTHON was given"
        return ways
    if gguf is None:
        missing["xllamacpp"] = "no --gguf FILE was given"
    else:
        whole = folder / "whole.gguf"
        expand(gguf, whole)
        for name, file, dtype in (
            ("xllamacpp_q4_1", gguf, "Q4_1, embedding Q8_0"),
            ("xllamacpp_float32", whole, "float32, expanded from the same file"),
        ):
            try:
                ways[name] = Llama(stack, python, file, dtype, threads)
            except (OSError, ValueError) as error:
                missing[name] = f"did not start: {error}"
    try:
        ways["language_pipes"] = Pipes(stack, python, directory, folder)
    except (OSError, RuntimeError) as error:
        missing["language_pipes"] = f"did not start: {error}"
    return ways


class _Clock(BaseStreamer):  # type: ignore[misc]
    """When tokens came; the first call is the prompt."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing to do."""


class Unsplit(Peer):
    """`transformers`, all layers here."""

    dtype = "float32"
    remote_sees = "There is no remote side; run on a rented machine, that machine sees prompt and answer as text."

    def __init__(self, directory: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def answer(self, text: str, ids: list[int], tokens: int) -> Answer:
        inputs, clock = torch.tensor([ids]), _Clock()
        started = time.perf_counter()
        with torch.inference_mode():
            whole = self._model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                streamer=clock,
            )  # fmt: skip
        times = [at - started for at in clock.times[1:]]
        return Answer(times[0], times[-1], len(times), whole[0, len(ids) :].tolist())


class Split(Peer):
    """cutlayer: server process and client here, mutual TLS over loopback."""

    remote_sees = (
        "Hidden states after layer 2 and, returned, before layer 28: no text, no ids, no logits. Undefended they are not "
        "unreadable: see the audit's records for how many tokens its attacks recover at this cut."
    )

    def __init__(self, stack: contextlib.ExitStack, model: str, cut: str, dtype: str) -> None:
        self.dtype = dtype
        server = stack.enter_context(ServerProcess(model, cut, (f"--dtype={dtype}",)))
        self._client: Client = stack.enter_context(
            connect(server.url, keys=server.client_keys, options=Options(model=model, speculate="off"))
        )

    def answer(self, text: str, ids: list[int], tokens: int) -> Answer:
        # Beginning with another token first: the session holds nothing of the prompt, as the others do not.
        short = self._client.generate([ids[0] + 1, *ids[1:]], max_tokens=2, ignore_eos=True).result()
        started = time.perf_counter()
        generation = self._client.generate(ids, max_tokens=tokens, ignore_eos=True)
        first = 0.0
        for _ in generation:
            first = first or time.perf_counter() - started
        result = generation.result()
        last = time.perf_counter() - started
        more = result.bytes.sent + result.bytes.received - short.bytes.sent - short.bytes.received
        count = len(result.token_ids)
        return Answer(first, last, count, result.token_ids, more * (count - 1) / (result.steps - short.steps))


class Llama(Peer):
    """llama.cpp's server engine in a process of its own."""

    remote_sees = "There is no remote side; whoever runs this server sees prompt and answer as text."

    def __init__(self, stack: contextlib.ExitStack, python: Path, file: Path, dtype: str, threads: int) -> None:
        self.dtype = dtype
        script = [str(python), str(SCRIPTS / "xllamacpp_answers.py"), str(file), str(threads)]
        self._process = stack.enter_context(
            subprocess.Popen(
                script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        )
        stack.callback(self._process.terminate)
        self._read()

    def answer(self, text: str, ids: list[int], tokens: int) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"ids": ids, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        found = self._read()
        return Answer(found["first_s"], found["total_s"], len(found["tokens"]), found["tokens"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError("the process ended; is xllamacpp installed there?")
        return dict(json.loads(line))


class Pipes(Peer):
    """language-pipes: a node with text, first layers, norm and head, and one with all other layers."""

    dtype = "bfloat16"
    remote_sees = (
        "Hidden states after layer 2 and, returned, those after the last layer, before norm and head: whoever has the public "
        "output matrix reads the next token from these; also rotary tables and positions. Bodies are AES-encrypted with one key "
        "that all nodes share."
    )
    _NAME: Final = "local/model"

    def __init__(self, stack: contextlib.ExitStack, python: Path, directory: Path, folder: Path) -> None:
        ports = [_free_port() for _ in range(3)]
        key = secrets.token_hex(16)
        self._counters = [folder / f"sent{i}" for i in range(2)]
        self._url = f"http://127.0.0.1:{ports[2]}/v1/"
        shared = f'network_ip = "127.0.0.1"\nnetwork_key = "{key}"\n'
        settings = (
            f'node_id = "user"\n{shared}peer_port = {ports[0]}\njob_port = {ports[2]}\n'
            f'[[end_models]]\nmodel_id = "{self._NAME}"\nnum_local_layers = {_LOCAL_LAYERS}\ndevice = "cpu"\n',
            f'node_id = "other"\n{shared}peer_port = {ports[1]}\n'
            f'[[bootstrap_nodes]]\naddress = "127.0.0.1"\nport = {ports[0]}\n'
            f'[[layer_models]]\nmodel_id = "{self._NAME}"\ndevice = "cpu"\nmemory = 8.0\ndata_type = 16\n',
        )
        self._logs = [folder / f"node{i}.log" for i in range(2)]
        for i, text in enumerate(settings):
            home = folder / f"node{i}"
            (home / "models" / self._NAME).mkdir(parents=True)
            (home / "models" / self._NAME / "data").symlink_to(directory)
            (home / "node.toml").write_text(text)
            environment = {
                **os.environ, "HOME": str(home), "LP_APP_DIR": str(home / "app"), "LP_MODEL_DIR": str(home / "models"),
                "HF_HUB_OFFLINE": "1",
            }  # fmt: skip
            script = [
                str(python),
                str(SCRIPTS / "language_pipes_node.py"),
                str(home / "node.toml"),
                str(self._counters[i]),
            ]
            with self._logs[i].open("wb") as log:
                process = stack.enter_context(subprocess.Popen(script, stdout=log, stderr=log, env=environment))
            stack.callback(process.kill)
            self._wait(self._logs[i], "job server" if i == 0 else "successfully loaded", process)
        self._wait(self._logs[0], "loaded successfully", process)

    def answer(self, text: str, ids: list[int], tokens: int) -> Answer:
        request = {
            "model": self._NAME, "messages": [{"role": "user", "content": text}], "temperature": 0, "stream": True,
            "max_completion_tokens": tokens,
        }  # fmt: skip
        times: list[float] = []
        sent = 0.0
        started = time.perf_counter()
        for piece in self._stream(request):
            if piece:
                times.append(time.perf_counter() - started)
                sent = sent or -self._sent()
        if not times:
            raise RuntimeError(f"no tokens came; {self._logs[0].read_text()[-500:]}")
        time.sleep(0.5)
        return Answer(times[0], times[-1], len(times), None, sent + self._sent())

    def _stream(self, request: dict[str, Any]) -> Iterator[str]:
        with httpx2.stream("POST", f"{self._url}chat/completions", json=request, timeout=180) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    yield json.loads(line[6:])["choices"][0]["delta"].get("content") or ""

    def _sent(self) -> float:
        return float(sum(int(file.read_text() or 0) for file in self._counters if file.exists()))

    @staticmethod
    def _wait(log: Path, words: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while words not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"no {words!r}: {log.read_text(errors='replace')[-500:]}")
            time.sleep(0.1)


def expand(packed: Path, whole: Path) -> None:
    """Write a GGUF file's tensors as float32, everything else as it is."""
    import gguf

    reader = gguf.GGUFReader(packed)
    field = reader.fields["general.architecture"]
    writer = gguf.GGUFWriter(whole, field.contents())
    for name, entry in reader.fields.items():
        if name.startswith("GGUF.") or name in {"general.architecture", "general.file_type"}:
            continue
        inner = entry.types[1] if len(entry.types) > 1 else None
        writer.add_key_value(name, entry.contents(), entry.types[0], inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _figures(answers: dict[str, list[Answer]], stop: frozenset[int]) -> tuple[dict[str, Figure], dict[str, list[Any]]]:
    figures: dict[str, Figure] = {}
    samples: dict[str, list[Any]] = {}
    for name, found in answers.items():
        samples[name] = [one._asdict() for one in found]
        figures[f"{name}_tokens_per_s"] = median([_rate(one) for one in found], "tokens/s")
        rates = [_decode_rate(one) for one in found if one.tokens > 1]
        figures[f"{name}_decode_tokens_per_s"] = median(rates, "tokens/s")
        figures[f"{name}_first_token_ms"] = median([one.first_s * 1e3 for one in found], "ms")
        figures[f"{name}_tokens"] = exact(sum(one.tokens for one in found), "tokens", len(found))
        crossed = [one for one in found if one.decode_bytes is not None]
        if crossed:
            steps = sum(one.tokens - 1 for one in crossed)
            total = sum(one.decode_bytes or 0.0 for one in crossed)
            figures[f"{name}_bytes_per_token"] = exact(total / steps, "bytes", steps)
    exactly = answers["transformers_float32"]
    for name, found in answers.items():
        if name != "transformers_float32" and all(one.ids for one in found):
            same = sum(_agree(one.ids or [], other.ids or [], stop) for one, other in zip(found, exactly, strict=True))
            figures[f"{name}_answers_as_unsplit"] = exact(same, "answers", len(found))
    for name in ("cutlayer_float32", "xllamacpp_float32"):
        if name in answers:
            ratios = [_rate(one) / _rate(other) for one, other in zip(answers[name], exactly, strict=True)]
            figures[f"{name}_over_unsplit_tokens_per_s"] = median(ratios, "ratio")
    if "language_pipes" in answers:
        pairs = zip(answers["cutlayer_bfloat16"], answers["language_pipes"], strict=True)
        figures["cutlayer_bfloat16_over_language_pipes_decode_tokens_per_s"] = median(
            [_decode_rate(ours) / _decode_rate(theirs) for ours, theirs in pairs], "ratio"
        )
    return figures, samples


def _rate(answer: Answer) -> float:
    return answer.tokens / answer.last_s


def _decode_rate(answer: Answer) -> float:
    return (answer.tokens - 1) / (answer.last_s - answer.first_s)


def _agree(ours: list[int], unsplit: list[int], stop: frozenset[int]) -> bool:
    """Same tokens up to the end of the text: past it transformers bars the token that ends a text, and cutlayer does not."""
    end = next((i for i, token in enumerate(ours) if token in stop), len(ours))
    return ours[:end] == unsplit[:end]


def _versions(python: Path | None) -> dict[str, str]:
    if python is None:
        return {}
    names = ["xllamacpp", "language-pipes", "transformers", "torch"]
    program = f"import json,importlib.metadata as m\nprint(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    done = subprocess.run([str(python), "-c", program], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{python} lacks a peer: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    app()
