"""The clients people have, pointed at a gateway process in front of a server process. The model is the real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx2
import jsonschema
import openai
import pytest
import torch
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cutlayer.cli.server_process import ServerProcess

pytestmark = pytest.mark.model

QUESTION = "What is the capital of France?"
TOLERANCE = 1e-3
KEY = "the-key-of-a-test"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 40}, "capital": {"type": "boolean"}},
    "required": ["city", "capital"],
    "additionalProperties": False,
}


class GatewayProcess:
    """`cutlayer gateway` on a free port of loopback, with an API key."""

    def __init__(self, server: ServerProcess, folder: Path, *options: str) -> None:
        self._log, ready, keys = folder / "log", folder / "ready", folder / "api.keys"
        keys.write_text(f"tester {KEY}\n")
        keys.chmod(0o600)
        command = [
            sys.executable,
            "-m",
            "cutlayer",
            "gateway",
            f"--server={server.url}",
            f"--keys={server.client_keys}",
        ]
        command += ["--listen=127.0.0.1:0", f"--api-keys={keys}", f"--ready-file={ready}", *options]
        environment = {**os.environ, "XDG_CONFIG_HOME": str(folder)}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 120
        while not (ready.exists() and ready.read_text().endswith("\n")):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        self.url = ready.read_text().strip()

    def log(self) -> str:
        return self._log.read_text()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]

    def metric(self, name: str) -> float:
        url = self.url.removesuffix("/v1") + "/metrics"
        text = httpx2.get(url, headers={"Authorization": f"Bearer {KEY}"}).text
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def gateway(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(server, tmp_path_factory.mktemp("gateway"), "--sessions=2")
    yield process
    if process.process.poll() is None:
        assert process.stop() == 0
    assert "Traceback" not in process.log()


@pytest.fixture
def client(gateway: GatewayProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url, api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def unsplit(smollm2: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def model(smollm2: Path) -> str:
    return smollm2.name


def asking(model: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 24,
        **fields,
    }


def test_chat_whole_and_streamed(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(**asking(model, logprobs=True, top_logprobs=2))
    ChatCompletion.model_validate(answer.model_dump(), strict=True)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    content = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert "".join(entry.token for entry in content or ()) == answer.choices[0].message.content
    chunks = list(client.chat.completions.create(**asking(model, stream=True, stream_options={"include_usage": True})))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    conversation = [
        *asking(model)["messages"],
        answer.choices[0].message.model_dump(),
        {"role": "user", "content": "And of Italy?"},
    ]
    second = client.chat.completions.create(**asking(model, messages=conversation))
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) > 0


def test_greedy_answer_is_the_unsplit_models(client: openai.OpenAI, model: str, unsplit: Any) -> None:
    raw = httpx2.post(
        f"{client.base_url}tokenize",
        json={"messages": asking(model)["messages"]},
        headers={"Authorization": f"Bearer {KEY}"},
    ).json()
    ids = torch.tensor([raw["tokens"]])
    with torch.inference_mode():
        whole = unsplit.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False)
    answer = client.chat.completions.create(**asking(model))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == whole.shape[1] - ids.shape[1]
    detokenized = httpx2.post(
        f"{client.base_url}detokenize",
        json={"tokens": whole[0, ids.shape[1] :].tolist()},
        headers={"Authorization": f"Bearer {KEY}"},
    ).json()
    assert answer.choices[0].message.content == detokenized["prompt"]


def test_echoed_logprobs_are_the_unsplit_models(
    client: openai.OpenAI, model: str, unsplit: Any, prompts: list[Any]
) -> None:
    """What harnesses for evaluation ask of `/v1/completions`: token ids in, the log-probability of each token out."""
    ids = httpx2.post(
        f"{client.base_url}tokenize", json={"prompt": prompts[0].text}, headers={"Authorization": f"Bearer {KEY}"}
    ).json()["tokens"]
    answer = client.completions.create(
        model=model, prompt=ids, max_tokens=1, echo=True, logprobs=1, temperature=0, seed=1234
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.token_logprobs is not None
    assert len(logprobs.token_logprobs) == len(ids) + 1
    with torch.inference_mode():
        expected = unsplit(torch.tensor([ids])).logits[0].log_softmax(-1)  # [T, V]
    assert logprobs.token_logprobs[0] is None
    for at in range(1, len(ids)):
        assert logprobs.token_logprobs[at] == pytest.approx(float(expected[at - 1, ids[at]]), abs=TOLERANCE)
        greedy = expected[at - 1].argmax() == ids[at]
        top = logprobs.top_logprobs[at]  # type: ignore[index]
        assert (max(top, key=top.get) == logprobs.tokens[at]) is bool(greedy)  # type: ignore[arg-type, index]


def test_choices_stops_and_completions(client: openai.OpenAI, model: str) -> None:
    several = client.chat.completions.create(**asking(model, n=3, temperature=1, seed=7, max_tokens=8))
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    again = client.chat.completions.create(**asking(model, n=3, temperature=1, seed=7, max_tokens=8))
    assert [choice.message.content for choice in several.choices] == [
        choice.message.content for choice in again.choices
    ]
    stopped = client.chat.completions.create(**asking(model, stop=[" is"]))
    assert stopped.choices[0].message.content == "The capital of France"
    assert stopped.choices[0].finish_reason == "stop"
    plain = client.completions.create(
        model=model, prompt=["The capital of France is", "1, 2, 3,"], max_tokens=4, temperature=0
    )
    assert "Paris" in plain.choices[0].text
    assert "4" in plain.choices[1].text
    streamed = client.completions.create(
        model=model, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in streamed) == plain.choices[0].text


def test_answers_under_a_schema(client: openai.OpenAI, model: str) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    for seed in range(2):
        answer = client.chat.completions.create(
            **asking(model, response_format=wanted, temperature=1, seed=seed, max_tokens=80)
        )
        assert answer.choices[0].finish_reason == "stop"
        jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


def command_of(name: str) -> str:
    """A client's own program, perhaps of another environment: these bring many packages along."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(
            f"{name} is not on the PATH (pip install llm 'lm-eval[api]' transformers, in an environment of its own)"
        )
    return found


@pytest.mark.parametrize("streamed", [True, False])
def test_llm_takes_it_as_an_extra_model(gateway: GatewayProcess, model: str, tmp_path: Path, streamed: bool) -> None:
    program = command_of("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: private\n  model_name: {model}\n  api_base: {gateway.url}\n  api_key_name: gateway\n"
    )
    (tmp_path / "keys.json").write_text(json.dumps({"gateway": KEY}))
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
    command = [program, "-m", "private", "-o", "temperature", "0", QUESTION, *([] if streamed else ["--no-stream"])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout


TASK = """\
task: facts
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{q}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
FACTS = [
    {"q": "The capital of France is", "choices": [" Paris", " London", " Rome"], "answer": 0},
    {"q": "Two plus two is", "choices": [" five", " three", " four"], "answer": 2},
    {"q": "The sky on a clear day is", "choices": [" blue", " made of wood and of some cheese"], "answer": 0},
]


def test_lm_eval_scores_are_the_unsplit_models(
    gateway: GatewayProcess, model: str, smollm2: Path, unsplit: Any, tmp_path: Path
) -> None:
    program = command_of("lm_eval")
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    (tmp_path / "facts.yaml").write_text(TASK.format(file=tmp_path / "facts.jsonl"))
    arguments = f"model={model},base_url={gateway.url}/completions,tokenizer={smollm2},tokenizer_backend=huggingface"
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [program, "--model", "local-completions", "--model_args", arguments, "--tasks", "facts"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    [samples] = (tmp_path / "out").rglob("samples_*.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    scored = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(scored) == len(FACTS)
    for sample in scored:
        for choice, [(score, greedy)] in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            context, whole = (
                tokenizer(text)["input_ids"] for text in (sample["doc"]["q"], sample["doc"]["q"] + choice)
            )
            with torch.inference_mode():
                logprobs = unsplit(torch.tensor([whole])).logits[0].log_softmax(-1)  # [T, V]
            ours = range(len(context), len(whole))
            assert float(score) == pytest.approx(sum(float(logprobs[at - 1, whole[at]]) for at in ours), abs=TOLERANCE)
            assert str(greedy) == str(all(int(logprobs[at - 1].argmax()) == whole[at] for at in ours))


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
            openai.BadRequestError,
            "tools",
        ),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"extra_body": {"max_token": 1}}, openai.BadRequestError, "max_token"),
    ],
)
def test_refusals_are_the_sdks_own_errors(
    client: openai.OpenAI, model: str, fields: dict[str, Any], error: type[openai.APIStatusError], param: str
) -> None:
    with pytest.raises(error) as refused:
        client.chat.completions.create(**{**asking(model), **fields})
    assert refused.value.param == param
    assert refused.value.request_id is not None


def test_a_wrong_key_is_refused(gateway: GatewayProcess) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=gateway.url, api_key="another-key-altogether", max_retries=0).models.list()


def test_who_leaves_frees_the_work_on_both_sides(
    client: openai.OpenAI, gateway: GatewayProcess, server: ServerProcess, model: str, health_of: Callable[..., Any]
) -> None:
    sent = gateway.metric("cutlayer_gateway_positions_released_total")
    stream = client.chat.completions.create(**asking(model, stream=True, max_tokens=2000, logit_bias={"2": -100}))
    next(iter(stream))
    assert gateway.metric("cutlayer_gateway_sessions_in_use") == 1
    stream.close()
    deadline = time.monotonic() + 30
    while gateway.metric("cutlayer_gateway_sessions_in_use"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert gateway.metric("cutlayer_gateway_positions_released_total") - sent < 1000  # of 2000
    assert health_of(server)["sessions"] <= 2
    assert client.chat.completions.create(**asking(model)).choices[0].finish_reason == "stop"


def test_logs_hold_no_content_and_the_server_stays_out_of_it(
    gateway: GatewayProcess, server: ServerProcess, model: str
) -> None:
    ready = next(line for line in gateway.log().splitlines() if not line.startswith("{"))
    assert ready.startswith(f"{gateway.url} serves {model}. Measured: at k=2 undefended")
    assert {event["event"] for event in gateway.events()} <= {"listening", "answered"}
    assert all(event["key"] == "tester" for event in gateway.events() if event.get("status") == 200)
    for log in (gateway.log(), server.log()):
        assert "France" not in log
        assert "Paris" not in log
        assert KEY not in log


def test_answers_survive_the_servers_death(
    gateway: GatewayProcess, server: ServerProcess, client: openai.OpenAI, model: str
) -> None:
    whole = client.chat.completions.create(**asking(model)).choices[0].message.content
    stream = client.chat.completions.create(**asking(model, stream=True))
    chunks = iter(stream)
    text = next(chunks).choices[0].delta.content or ""
    text += next(chunks).choices[0].delta.content or ""
    server.kill()
    server.start()
    text += "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole


def test_stopping_closes_the_sessions_at_the_server(
    gateway: GatewayProcess, server: ServerProcess, health_of: Callable[..., Any]
) -> None:
    assert health_of(server)["sessions"] >= 1
    assert gateway.stop() == 0
    assert health_of(server)["sessions"] == 0
