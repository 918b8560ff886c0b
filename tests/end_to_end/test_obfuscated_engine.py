"""As users have it: `cutlayer obfuscate`, the export in an unmodified llama.cpp server, `cutlayer gateway`, and OpenAI's client.
The model is the real one; its plain answers are transformers'."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
import torch
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from transformers import AutoModelForCausalLM

from cutlayer.obfuscation.keyfile import seal
from cutlayer.obfuscation.keys import create_owner_key
from cutlayer.obfuscation.marker import read_marker
from cutlayer.obfuscation.settings import choose
from cutlayer.text.tokenizer import Message, Tokenizer
from cutlayer.types import Secret
from cutlayer.wire.private_files import write_new

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('xllamacpp')", reason="needs xllamacpp"),
]

SERVE = Path(__file__).parents[2] / "benchmarks" / "peer_scripts" / "xllamacpp_serve.py"
PROMPTS = 5
TOKENS = 24
TOLERANCE = 1e-3
PATIENCE_S = 180


@pytest.fixture(scope="module")
def made(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with export, GGUF, keys and passphrase."""
    folder = tmp_path_factory.mktemp("obfuscated")
    (folder / "passphrase").write_text("open sesame\n")
    (folder / "passphrase").chmod(0o600)
    subprocess.run(
        [
            sys.executable, "-m", "cutlayer", "obfuscate", smollm2.name, "--quiet", f"--out={folder / 'export'}",
            f"--gguf={folder / 'model.gguf'}", f"--key={folder / 'keys' / 'owner.key'}",
            f"--passphrase-file={folder / 'passphrase'}",
        ],
        check=True, timeout=600,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def engine(made: Path) -> Iterator[str]:
    """URL of llama.cpp's server."""
    name = f"obfuscated-{read_marker(made / 'export').key_id}"
    command = [sys.executable, str(SERVE), str(made / "model.gguf"), name, "1"]
    with (
        (made / "engine.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@pytest.fixture(scope="module")
def gateway(engine: str, made: Path, smollm2: Path) -> Iterator[str]:
    """URL of the gateway."""
    ready = made / "ready"
    command = [
        sys.executable, "-m", "cutlayer", "gateway", "--upstream", "llamacpp", engine, f"--key={made / 'keys' / 'client.key'}",
        f"--passphrase-file={made / 'passphrase'}", f"--model={smollm2.name}", "--listen=127.0.0.1:0", f"--ready-file={ready}",
    ]  # fmt: skip
    with (
        (made / "gateway.log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "XDG_CONFIG_HOME": str(made)}) as process,
    ):
        deadline = time.monotonic() + PATIENCE_S
        while not (ready.exists() and ready.read_text().endswith("\n")):
            assert process.poll() is None, (made / "gateway.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield ready.read_text().strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    for word in ("France", "Paris", "Traceback"):
        assert word not in (made / "gateway.log").read_text() + (made / "engine.log").read_text(errors="replace")


@pytest.fixture
def client(gateway: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway, api_key="unused", max_retries=0, timeout=PATIENCE_S)


def asking(text: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": "smollm2-135m", "messages": messages, "temperature": 0, "max_tokens": TOKENS, **fields}


def test_answers_are_the_plain_models(client: openai.OpenAI, smollm2: Path, prompts: list[Any]) -> None:
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval(), Tokenizer(smollm2)
    for prompt in prompts[:PROMPTS]:
        ids = torch.tensor([tokenizer.render([Message("user", prompt.text)])])
        with torch.inference_mode():
            whole = plain.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
            rows = plain(whole).logits[0, ids.shape[1] - 1 :].log_softmax(-1)
        answer = client.chat.completions.create(**asking(prompt.text, logprobs=True, top_logprobs=2))
        ChatCompletion.model_validate(answer.model_dump(), strict=True)
        expected = whole[0, ids.shape[1] :].tolist()
        assert answer.choices[0].message.content == tokenizer.decode(expected)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == len(expected)
        content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
        for entry, row, token in zip(content or (), rows, expected, strict=False):
            assert abs(entry.logprob - float(row[token])) < TOLERANCE


def test_streams_seeds_and_stop_strings(client: openai.OpenAI) -> None:
    text = "Tell me about Paris."
    chunks = list(client.chat.completions.create(**asking(text, stream=True, stream_options={"include_usage": True})))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    whole = client.chat.completions.create(**asking(text)).choices[0].message.content or ""
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    drawn = [
        client.chat.completions.create(**asking(text, temperature=1, seed=7)).choices[0].message.content for _ in "ab"
    ]
    assert drawn[0] == drawn[1]
    stop = whole[12:16]
    cut = client.chat.completions.create(**asking(text, stop=stop)).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_client_that_leaves_stops_the_engine(client: openai.OpenAI, engine: str) -> None:
    stream = client.chat.completions.create(
        **asking("Count to a thousand.", max_tokens=1500, stream=True, logit_bias={"2": -100})
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + PATIENCE_S
    while httpx2.get(f"{engine}/slots").json()[0]["is_processing"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def another_key(made: Path, smollm2: Path) -> Path:
    """As large and as valid, for another export of the same model."""
    file = made / "another.key"
    write_new(file, seal(create_owner_key(smollm2, choose(smollm2)).client(), Secret(b"open sesame")))
    return file


def test_wrong_keys_and_flags_end_with_a_clear_refusal(
    cutlayer: Callable[..., Any], made: Path, engine: str, another_key: Path
) -> None:
    def refused(*arguments: str, code: int) -> str:
        done = cutlayer("gateway", "--listen=127.0.0.1:0", *arguments)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return str(done.stderr)

    opened = f"--passphrase-file={made / 'passphrase'}"
    upstream = ("--upstream", "llamacpp", engine, "--model=smollm2-135m")
    damaged = made / "damaged.key"
    content = bytearray((made / "keys" / "client.key").read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    damaged.chmod(0o600)
    assert "does not open" in refused(*upstream, f"--key={damaged}", opened, code=1)
    assert "owner" in refused(*upstream, f"--key={made / 'keys' / 'owner.key'}", opened, code=1)
    assert "use the key of that export" in refused(*upstream, f"--key={another_key}", opened, code=1)
    assert "--key" in refused(*upstream, code=2)
    assert "--cut" in refused(*upstream, f"--key={another_key}", "--cut=2:-2", code=2)
    assert "one of the two" in refused(*upstream, "--server=ws://127.0.0.1:9", code=2)
    assert "https://" in refused(
        "--upstream", "vllm", "http://gpu.example", f"--key={another_key}", "--model=smollm2-135m", opened, code=2
    )
