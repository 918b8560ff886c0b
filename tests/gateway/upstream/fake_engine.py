"""An engine on loopback that runs an obfuscated model and speaks as vLLM, llama.cpp or SGLang do. It keeps what it is sent, and
can be told to misbehave."""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

NAMES = ("vllm", "llamacpp", "sglang")
POSITIONS = 200
Likely = list[tuple[int, float]]
"""Every id and its log-probability, likeliest first."""


class FakeEngine:
    """See the module. Chooses greedily, whatever temperature is asked for.

    Args:
        kind: whose interface.
        directory: an export.
        name: what the engine calls its model.
        tls: speak HTTPS.
    """

    def __init__(self, kind: str, directory: Path, name: str, tls: ssl.SSLContext | None = None) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.left = threading.Event()
        """A client was gone before its answer was complete."""
        self.go_on = threading.Event()
        """While it is not set, streams stop after two tokens."""
        self.go_on.set()
        self.says: list[int] | None = None
        """Ids to answer with in place of the model's."""
        self.misbehave: Callable[[Handler], None] | None = None
        """Answers in place of this engine."""
        self._model = AutoModelForCausalLM.from_pretrained(directory).eval()
        self.speech = SPEECHES[kind](name, str(directory), self._model.config.vocab_size)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.engine = self  # type: ignore[attr-defined]
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeEngine:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def likely(self, ids: list[int]) -> list[Likely]:
        """After each of `ids`."""
        with torch.inference_mode():
            rows = self._model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return [
            list(zip(order.tolist(), row[order].tolist(), strict=True))
            for row, order in zip(rows, rows.argsort(descending=True), strict=True)
        ]

    def tokens(
        self, prompt: list[int], most: int, bias: dict[int, float], ends: set[int]
    ) -> Iterator[tuple[Likely, int]]:
        """Likely tokens and the one chosen, until an end."""
        ids = list(prompt)
        ends = ends | set(torch.tensor(self._model.generation_config.eos_token_id).flatten().tolist())
        for _ in range(most):
            likely = self.likely(ids)[-1]
            if self.says is None:
                chosen = max(likely, key=lambda entry: entry[1] + bias.get(entry[0], 0.0))[0]
            else:
                chosen = self.says[len(ids) - len(prompt)]
            ids.append(chosen)
            yield likely, chosen
            if chosen in ends:
                return


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        found = self.engine.speech.pages().get(self.path)
        self.answer(200 if found is not None else 404, found if found is not None else {"error": "no such page"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.engine.bodies.append(body)
        self.engine.headers.append(dict(self.headers.items()))
        if self.engine.misbehave is not None:
            with suppress(OSError):
                self.engine.misbehave(self)
            self.close_connection = True
            return
        speech, asked = self.engine.speech, json.loads(body)
        if self.path != speech.path:
            self.answer(404, {"error": "no such page"})
            return
        if not asked.get("stream"):
            self.answer(200, speech.scores(self.engine.likely(speech.prompt(asked)), asked))
            return
        self.begin()
        try:
            for number, event in enumerate(speech.events(self.engine, asked)):
                self.event(event)
                if number == 1:
                    self.engine.go_on.wait(30)
        except OSError:
            self.engine.left.set()
        self.close_connection = True

    @property
    def engine(self) -> FakeEngine:
        engine: FakeEngine = self.server.engine
        return engine

    def answer(self, status: int, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()

    def event(self, content: Any) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.wfile.write(b"data: " + data + b"\n\n")
        self.wfile.flush()


class Speech:
    """One interface, as far as the proxy needs it."""

    path = ""

    def __init__(self, name: str, directory: str, vocabulary: int) -> None:
        self.name = name
        self.directory = directory
        self.vocabulary = vocabulary

    def pages(self) -> dict[str, Any]:
        card = {"id": self.name, "object": "model", "root": self.directory, "max_model_len": POSITIONS}
        return {"/v1/models": {"object": "list", "data": [card]}}

    def prompt(self, asked: Any) -> list[int]:
        raise NotImplementedError

    def settings(self, asked: Any) -> tuple[int, dict[int, float], set[int], int | None]:
        """Tokens at most, bias, further ends, and how many likely tokens to report."""
        raise NotImplementedError

    def event(self, tokens: list[tuple[int, Likely | None]], finish: str | None = None) -> Any:
        """What says that these tokens came, with the likely ones where they are wanted."""
        raise NotImplementedError

    def scores(self, likely: list[Likely], asked: Any) -> Any:
        """Of a prompt."""
        raise NotImplementedError

    def events(self, engine: FakeEngine, asked: Any) -> Iterator[Any]:
        most, bias, ends, top = self.settings(asked)
        count = 0
        for likely, token in engine.tokens(self.prompt(asked), most, bias, ends):
            count += 1
            yield self.event([(token, None if top is None else _shown(likely, token, top))])
        yield self.event([], "length" if count == most else "stop")


class Vllm(Speech):
    path = "/v1/completions"

    def prompt(self, asked: Any) -> list[int]:
        return list(asked["prompt"])

    def settings(self, asked: Any) -> tuple[int, dict[int, float], set[int], int | None]:
        bias = {int(token): value for token, value in asked.get("logit_bias", {}).items()}
        return asked["max_tokens"], bias, set(asked["stop_token_ids"]), asked.get("logprobs")

    def event(self, tokens: list[tuple[int, Likely | None]], finish: str | None = None) -> Any:
        logprobs = None
        if tokens and tokens[0][1] is not None:
            rows = [(token, dict(likely or ())) for token, likely in tokens]
            logprobs = {
                "text_offset": [0] * len(rows),
                "tokens": [f"token_id:{token}" for token, _ in rows],
                "token_logprobs": [row[token] for token, row in rows],
                "top_logprobs": [{f"token_id:{other}": value for other, value in row.items()} for _, row in rows],
            }
        ids = [token for token, _ in tokens]
        choice = {"index": 0, "text": "<names>", "logprobs": logprobs, "finish_reason": finish, "token_ids": ids}
        return {"id": "cmpl-1", "object": "text_completion", "model": self.name, "choices": [choice]}

    def scores(self, likely: list[Likely], asked: Any) -> Any:
        prompt, top = asked["prompt"], asked["prompt_logprobs"]
        rows = [
            {
                str(token): {"logprob": value, "rank": 1, "decoded_token": "<name>"}
                for token, value in _shown(row, own, top)
            }
            for own, row in zip(prompt[1:], likely[:-1], strict=True)
        ]
        choice = {
            "index": 0,
            "text": "",
            "prompt_token_ids": prompt,
            "prompt_logprobs": [None, *rows],
            "token_ids": [0],
        }
        return {"id": "cmpl-1", "choices": [choice]}


class LlamaCpp(Speech):
    path = "/completion"

    def pages(self) -> dict[str, Any]:
        settings = {"params": {"temperature": 0.8}, "n_ctx": POSITIONS}
        card = {"id": self.name, "meta": {"n_vocab": self.vocabulary, "n_ctx": POSITIONS}}
        return {
            "/props": {"default_generation_settings": settings, "model_alias": self.name, "model_path": "m.gguf"},
            "/v1/models": {"models": [{"name": self.name}], "object": "list", "data": [card]},
        }

    def prompt(self, asked: Any) -> list[int]:
        return list(asked["prompt"])

    def settings(self, asked: Any) -> tuple[int, dict[int, float], set[int], int | None]:
        return asked["n_predict"], dict(asked["logit_bias"]), set(), asked["n_probs"] or None

    def event(self, tokens: list[tuple[int, Likely | None]], finish: str | None = None) -> Any:
        ids = [token for token, _ in tokens]
        if finish is not None:
            return {"content": "", "tokens": ids, "stop": True, "stop_type": "limit" if finish == "length" else "eos"}
        event: dict[str, Any] = {"index": 0, "content": "<name>", "tokens": ids, "stop": False}
        if tokens[0][1] is not None:
            event["completion_probabilities"] = [
                {
                    "id": token, "token": "<name>", "bytes": [60], "logprob": dict(likely or ())[token],
                    "top_logprobs": [{"id": other, "token": "<name>", "logprob": value} for other, value in likely or ()],
                }
                for token, likely in tokens
            ]  # fmt: skip
        return event


class SgLang(Speech):
    """Repeats the answer so far in each event."""

    path = "/generate"
    cumulative = True

    def prompt(self, asked: Any) -> list[int]:
        return list(asked["input_ids"])

    def settings(self, asked: Any) -> tuple[int, dict[int, float], set[int], int | None]:
        chosen = asked["sampling_params"]
        bias = {int(token): value for token, value in chosen.get("logit_bias", {}).items()}
        top = asked["top_logprobs_num"] if asked.get("return_logprob") else None
        return chosen["max_new_tokens"], bias, set(chosen["stop_token_ids"]), top

    def event(self, tokens: list[tuple[int, Likely | None]], finish: str | None = None) -> Any:
        return self._event(tokens, len(tokens), finish)

    def events(self, engine: FakeEngine, asked: Any) -> Iterator[Any]:
        most, bias, ends, top = self.settings(asked)
        said: list[tuple[int, Likely | None]] = []
        for likely, token in engine.tokens(self.prompt(asked), most, bias, ends):
            said.append((token, None if top is None else _shown(likely, token, top)))
            yield self._event(said if self.cumulative else said[-1:], len(said), None)
        yield self._event(said if self.cumulative else [], len(said), "length" if len(said) == most else "stop")

    def scores(self, likely: list[Likely], asked: Any) -> Any:
        prompt, top = asked["input_ids"], asked["top_logprobs_num"]
        rows = [dict(row) for row in likely[:-1]]
        meta = {
            "input_token_logprobs": [
                [None, prompt[0], None], *([row[own], own, None] for own, row in zip(prompt[1:], rows, strict=True))
            ],
            "input_top_logprobs": [None, *([[value, token, None] for token, value in row[:top]] for row in likely[:-1])],
            "completion_tokens": 1,
        }  # fmt: skip
        return {"text": "", "output_ids": [0], "meta_info": meta}

    def _event(self, tokens: list[tuple[int, Likely | None]], count: int, finish: str | None) -> Any:
        meta: dict[str, Any] = {
            "id": "1", "finish_reason": None if finish is None else {"type": finish}, "completion_tokens": count
        }  # fmt: skip
        if tokens and tokens[0][1] is not None:
            meta["output_token_logprobs"] = [[dict(likely or ())[token], token, None] for token, likely in tokens]
            meta["output_top_logprobs"] = [
                [[value, other, None] for other, value in likely or ()] for _, likely in tokens
            ]
        return {"text": "<names>", "output_ids": [token for token, _ in tokens], "meta_info": meta}


SPEECHES: dict[str, type[Speech]] = {"vllm": Vllm, "llamacpp": LlamaCpp, "sglang": SgLang}


def _shown(likely: Likely, token: int, top: int) -> Likely:
    """The likeliest, and the token itself in any case."""
    return [entry for place, entry in enumerate(likely) if place < top or entry[0] == token]
