"""The main job: an answer through two processes and TLS equals that of the unsplit model."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import cutlayer as package
from cutlayer.client.connect import Options
from cutlayer.text.tokenizer import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.cli.server_process import ServerProcess

pytestmark = pytest.mark.model

QUESTION = "What is the capital of France?"
NEW_TOKENS = 32
Run = "Callable[..., subprocess.CompletedProcess[str]]"


@pytest.fixture(scope="module")
def unsplit(smollm2: Path) -> Callable[[list[int], int], list[int]]:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()

    def greedy(ids: list[int], tokens: int) -> list[int]:
        inputs = torch.tensor([ids])
        with torch.inference_mode():
            whole = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=tokens, eos_token_id=-1, do_sample=False
            )
        return whole[0, len(ids) :].tolist()

    return greedy


def test_answers_are_those_of_the_unsplit_model_token_for_token(
    server: ServerProcess, prompts: list[Any], unsplit: Callable[[list[int], int], list[int]]
) -> None:
    with package.connect(server.url, keys=server.client_keys) as client:
        for prompt in prompts[::4]:
            result = client.generate(prompt.text, max_tokens=NEW_TOKENS, ignore_eos=True).result()
            assert result.token_ids == unsplit(result.prompt_token_ids, NEW_TOKENS), prompt.id
            assert 0 < result.steps < NEW_TOKENS  # fewer on a machine so slow that guesses pay
            assert result.finish_reason == "length"


def test_command_line_answers_and_accounts(cutlayer: Run, at: tuple[str, ...]) -> None:
    at = (*at, "--speculate", "off")  # a slow machine would guess, and the rows of guesses are bytes too
    plain = cutlayer("generate", QUESTION, *at)
    assert plain.returncode == 0, plain.stderr
    assert "Paris" in plain.stdout
    reported = json.loads(cutlayer("generate", QUESTION, *at, "--json").stdout)
    assert reported["text"].strip() == plain.stdout.strip()
    assert reported["finish_reason"] == "stop"
    assert reported["steps"] == len(reported["token_ids"]) - 1
    assert {"text", "prompt_token_ids", "token_ids", "finish_reason", "steps", "timings_ms", "bytes"} <= set(reported)
    width = 576 * 4
    steps = reported["steps"]
    positions = len(reported["prompt_token_ids"]) + steps
    overhead = reported["bytes"]["sent"] + reported["bytes"]["received"] - 2 * positions * width
    assert 0 < overhead <= 96 * (steps + 1)


def test_raw_prompts_go_without_chat_template(cutlayer: Run, at: tuple[str, ...], smollm2: Path) -> None:
    from transformers import AutoTokenizer

    done = cutlayer("generate", "The sea is", *at, "--raw", "--max-tokens", "4", "--ignore-eos", "--json")
    assert (
        json.loads(done.stdout)["prompt_token_ids"] == AutoTokenizer.from_pretrained(smollm2)("The sea is")["input_ids"]
    )


def test_chat_sends_only_new_positions(cutlayer: Run, at: tuple[str, ...]) -> None:
    done = cutlayer("chat", *at, "--watch", "--max-tokens", "8", text="My name is Ann.\nSay it.\n/new\nHello\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") >= 3
    sent = [int(line.split()[0].strip("[").replace(",", "")) for line in done.stderr.splitlines() if "B sent" in line]
    assert len(sent) == 3
    assert sent[1] < sent[0], "the second turn must not send the first one again"


def test_python_sync_and_async_give_the_same(server: ServerProcess) -> None:
    with package.connect(server.url, keys=server.client_keys) as client:
        conversation = [Message("user", "Name a colour.")]
        expected = client.generate(conversation, max_tokens=12).result()

    async def ask() -> tuple[str, Any]:
        async with package.aconnect(server.url, keys=server.client_keys) as client:
            generation = client.generate(conversation, max_tokens=12)
            text = "".join([piece.text async for piece in generation])
            return text, await generation.result()

    text, result = asyncio.run(ask())
    assert text == result.text == expected.text
    assert result.token_ids == expected.token_ids


@pytest.mark.parametrize("example", ["answer.py", "answer_async.py"])
def test_examples_run(example: str, server: ServerProcess) -> None:
    script = Path(__file__).parents[2] / "examples" / example
    done = subprocess.run(
        [sys.executable, str(script), server.url, str(server.client_keys)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


def test_an_async_task_can_be_cancelled_and_the_client_used_again(server: ServerProcess) -> None:
    async def ask() -> str:
        async with package.aconnect(server.url, keys=server.client_keys) as client:

            async def first() -> None:
                async for _ in client.generate("Count to one hundred.", max_tokens=200, ignore_eos=True):
                    started.set()

            started = asyncio.Event()
            task = asyncio.create_task(first())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return (await client.generate(QUESTION, max_tokens=20).result()).text

    assert "Paris" in asyncio.run(ask())


def test_ctrl_c_ends_an_answer_and_frees_the_server(
    server: ServerProcess, at: tuple[str, ...], health_of: Callable[[ServerProcess], dict[str, Any]]
) -> None:
    _until_idle(lambda: health_of(server)["sessions"])  # of the tests before
    command = ["generate", "Count to one thousand.", *at, "--max-tokens", "2000", "--ignore-eos"]
    with subprocess.Popen(
        [sys.executable, "-m", "cutlayer", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            process.stdout.read(1)
            assert health_of(server)["sessions"] == 1
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=120)  # other tests share the cores
        finally:
            process.kill()
    assert process.returncode == 130
    _until_idle(lambda: health_of(server)["sessions"])


def _until_idle(sessions: Callable[[], int]) -> None:
    deadline = time.monotonic() + 20
    while held := sessions():
        assert time.monotonic() < deadline, f"{held} sessions are still open"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--server", "ws://192.0.2.1:9"), 2, "unencrypted"),
        (("--server", "ws://127.0.0.1:9"), 1, "cannot connect"),
        (("--server", "nonsense"), 2, "nonsense"),
    ],
)
def test_wrong_servers_are_refused_in_words(cutlayer: Run, arguments: tuple[str, ...], code: int, words: str) -> None:
    done = cutlayer("generate", "x", *arguments)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--cut", "4:-4"), "nothing was sent"),
        (("--defence", "magic"), "available"),
        (("--defence", "gaussian"), "epsilon"),
        (("--temperature", "-1"), "sampling"),
        (("--max-tokens", "0"), "at least 1"),
        (("--codec", "fp8"), "available"),
        (("--dtype", "int3"), "float32"),
    ],
)
def test_wrong_options_are_refused_in_words(
    cutlayer: Run, at: tuple[str, ...], options: tuple[str, ...], words: str
) -> None:
    done = cutlayer("generate", "x", *at, *options)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_defence_changes_what_leaves_and_is_reported(server: ServerProcess) -> None:
    options = Options(defence="gaussian:sigma=0.01")
    with package.connect(server.url, keys=server.client_keys, options=options) as client:
        result = client.generate(QUESTION, max_tokens=16).result()
    assert result.defence == "gaussian:sigma=0.01"
    assert "Paris" in result.text


def test_server_process_holds_no_tokenizer(server: ServerProcess) -> None:
    """No shared object of the tokenizers library is mapped into the server."""
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    assert "torch" in maps
    assert "tokenizers" not in maps


def test_serving_beyond_loopback_needs_protection(cutlayer: Run, smollm2: Path) -> None:
    done = cutlayer("serve", str(smollm2), "--listen", "0.0.0.0:0")
    assert done.returncode == 2
    assert "TLS" in done.stderr


def test_help_is_quick(cutlayer: Run) -> None:
    """Not a timed test: no heavy module may be imported for help."""
    program = (
        "import sys; sys.argv=['cutlayer','--help']\n"
        "from cutlayer.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch','transformers','numpy','websockets','cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_logs_hold_events_and_no_content(server: ServerProcess) -> None:
    lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
    assert {line["event"] for line in lines} >= {"listening", "session_opened", "session_closed"}
    assert not any("Paris" in str(line) or "tensor(" in str(line) for line in lines)


def test_stop_is_clean(smollm2: Path) -> None:
    from cutlayer.cli.server_process import ServerProcess

    with ServerProcess(str(smollm2), "4:-4", ("--dtype=bfloat16",)) as server:
        with package.connect(server.url, keys=server.client_keys) as client:
            assert client.codec.name == "bf16"
            assert client.generate(QUESTION, max_tokens=3).result().steps <= 2
        assert server.stop() == 0
