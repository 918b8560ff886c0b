"""Answers of llama.cpp's server engine, by the package xllamacpp. One JSON object per line in, one out.

Run by the peer's own interpreter:  python xllamacpp_answers.py MODEL.gguf THREADS
In: {"ids": [token ids], "tokens": N}. Out: {"first_s", "total_s", "tokens": [token ids]}, after a first line {"ready": true}.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any


def serve(model: str, threads: int) -> None:
    """Answer until standard input ends."""
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = model
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.sampling.temp = 0.0
    server = llama.Server(params)
    say({"ready": True})
    for line in sys.stdin:
        wanted = json.loads(line)
        say(answer(server, wanted["ids"], wanted["tokens"]))


def answer(server: Any, ids: list[int], tokens: int) -> dict[str, Any]:
    """One greedy answer that does not stop early."""
    arrived: list[float] = []
    found: list[int] = []

    def took(chunk: Any) -> None:
        """Parts of the answer; the list of probabilities is where its token ids are."""
        for choice in chunk.get("choices", ()) if isinstance(chunk, dict) else ():
            listed = (choice.get("logprobs") or {}).get("content") or []
            if listed:
                arrived.append(time.perf_counter())
                found.extend(entry["id"] for entry in listed)

    request = {
        "prompt": ids, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True, "cache_prompt": False, "stream": True,
        "logprobs": 1,
    }  # fmt: skip
    started = time.perf_counter()
    server.handle_completions(request, took)
    if not found:
        raise RuntimeError("no tokens came")
    return {"first_s": arrived[0] - started, "total_s": arrived[-1] - started, "tokens": found}


def say(message: dict[str, Any]) -> None:
    """One line; standard error is llama.cpp's."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
