"""`cutlayer plan` against the published figures, against real parts, and its arithmetic."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cutlayer.errors import CutError, InputError, UnsupportedModelError
from cutlayer.models.conditions import Conditions
from cutlayer.models.cost import DOWNLINK_OVERHEAD, KV_POSITIONS, LOSSLESS, UPLINK_OVERHEAD, WIRE_BYTES
from cutlayer.models.family import read_config, read_config_file
from cutlayer.models.parameters import Parameters, count_parameters
from cutlayer.models.parts import Part, load_body, load_client
from cutlayer.models.plan import Plan, make_plan
from cutlayer.types import Cut
from cutlayer.wire import codecs, frames

CONFIGS = Path(__file__).parent / "configs"
DEPTHS = (1, 2, 4, 8)

# GB as published: per model, for k = m = 1, 2, 4, 8, client "bf16 / int8 / int4 + embedding in bf16"; then the server's
# "bf16 / int8 / int4" at k = m = 2, and the model's billions of parameters.
PUBLISHED = {
    "mistral-7b-v0.3": (
        ("1.41 0.70 0.32 0.27", "2.28 1.14 0.57 0.27", "4.03 2.01 1.06 0.27", "7.52 3.76 2.04 0.27"),
        "12.2 6.1 3.4",
        "7.248",
    ),
    "mistral-nemo-2407": (
        ("3.77 1.89 0.68 1.34", "4.87 2.43 0.99 1.34", "7.05 3.52 1.60 1.34", "11.4 5.70 2.83 1.34"),
        "19.6 9.8 5.5",
        "12.248",
    ),
    "llama-3.1-8b": (
        ("2.97 1.49 0.54 1.05", "3.85 1.92 0.79 1.05", "5.59 2.80 1.28 1.05", "9.08 4.54 2.26 1.05"),
        "12.2 6.1 3.4",
        "8.030",
    ),
    "llama-3.1-70b": (
        ("7.63 3.81 1.55 2.10", "11.1 5.52 2.52 2.10", "17.9 8.95 4.44 2.10", "31.6 15.8 8.29 2.10"),
        "130 65.0 36.6",
        "70.554",
    ),
    "qwen2.5-7b": (
        ("3.11 1.56 0.57 1.09", "4.04 2.02 0.83 1.09", "5.91 2.95 1.36 1.09", "9.64 4.82 2.40 1.09"),
        "11.2 5.6 3.1",
        "7.616",
    ),
    "qwen2.5-72b": (
        ("8.49 4.25 1.69 2.49", "12.0 6.00 2.68 2.49", "19.0 9.51 4.65 2.49", "33.1 16.5 8.60 2.49"),
        "133 66.7 37.5",
        "72.706",
    ),
}
FORMATS = ("bfloat16", "int8", "int4", "int4_embedding")
CLIENT_CELLS = [
    (model, depth, form, cell)
    for model, (rows, _, _) in PUBLISHED.items()
    for depth, row in zip(DEPTHS, rows, strict=True)
    for form, cell in zip(FORMATS, row.split(), strict=True)
]
SERVER_CELLS = [
    (model, form, cell)
    for model, (_, row, _) in PUBLISHED.items()
    for form, cell in zip(FORMATS[:3], row.split(), strict=True)
]


@pytest.fixture(scope="module")
def published_plans() -> dict[str, Plan]:
    return {
        model: make_plan(model, count_parameters(read_config_file(CONFIGS / f"{model}.json")), Conditions())
        for model in PUBLISHED
    }


def _agrees(measured: float, printed: str) -> bool:
    """Within 2 % or half a unit of the last printed digit."""
    decimals = len(printed.partition(".")[2])
    return abs(measured - float(printed)) <= max(0.02 * float(printed), 0.5 * 10**-decimals)


def _at(plan: Plan, depth: int):
    return next(cut for cut in plan.cuts if cut.head_layers == cut.tail_layers == depth)


@pytest.mark.parametrize(("model", "depth", "form", "printed"), CLIENT_CELLS)
def test_client_memory_agrees_with_the_published_table(published_plans, model, depth, form, printed):
    assert _agrees(getattr(_at(published_plans[model], depth).client.weights, form) / 1e9, printed)


@pytest.mark.parametrize(("model", "form", "printed"), SERVER_CELLS)
def test_server_memory_agrees_with_the_published_table(published_plans, model, form, printed):
    assert _agrees(getattr(_at(published_plans[model], 2).server.weights, form) / 1e9, printed)


@pytest.mark.parametrize("model", PUBLISHED)
def test_totals_are_the_published_ones(published_plans, model):
    assert f"{published_plans[model].parameters.total / 1e9:.3f}" == PUBLISHED[model][2]


def test_client_cache_of_the_published_table(published_plans):
    for model, at_8k in {"mistral-7b-v0.3": "0.13", "qwen2.5-7b": "0.07"}.items():
        assert f"{8 * _at(published_plans[model], 2).client.kv_bytes / 1e9:.2f}" == at_8k


SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VARIANTS = {
    "llama-untied": ("llama", {"tie_word_embeddings": False}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2-biased": ("qwen2", {}),
    "gemma3-wide-heads": ("gemma3_text", {"head_dim": 16}),
    "gpt-neox-fused": ("gpt_neox", {"num_key_value_heads": 4}),  # knows no grouped heads
    "mixtral-experts": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request, tmp_path_factory) -> Path:
    """A tiny random model on disk."""
    kind, settings = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | settings)).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("bounds", ["0:6", "1:-1", "2:-2", "1:-3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_predicted_bytes_are_those_of_loaded_parts(saved, bounds, dtype):
    name = str(dtype).removeprefix("torch.")
    parameters = count_parameters(read_config(saved))
    cut = Cut.parse(bounds, 6)
    planned = next(c for c in make_plan("m", parameters, Conditions(dtype=name), (bounds,)).cuts if c.cut == str(cut))
    body = load_body(saved, cut, dtype)
    head, tail = load_client(saved, cut, dtype)

    assert getattr(planned.server.weights, name) == body.weight_bytes() - _buffer_bytes(body)
    shared = head.embedding().nbytes if parameters.tied else 0  # both parts count the one matrix
    held = sum(part.weight_bytes() - _buffer_bytes(part) for part in (head, tail)) - shared
    assert getattr(planned.client.weights, name) == held


def _buffer_bytes(part: Part) -> int:
    """Rotary frequencies and the like, which the plan leaves out."""
    return sum(buffer.nbytes for buffer in part.shell.buffers())


def test_predicted_cache_is_that_of_loaded_parts(saved):
    cut = Cut.parse("1:-2", 6)
    plan = make_plan("m", count_parameters(read_config(saved)), Conditions(dtype="float32"), ("1:-2",))
    planned = next(c for c in plan.cuts if c.cut == str(cut))
    head, tail = load_client(saved, cut, torch.float32)
    body = load_body(saved, cut, torch.float32)
    caches = [part.new_cache() for part in (head, body, tail)]
    positions = 128  # the first capacity, so nothing is allocated in reserve
    with torch.inference_mode():
        hidden = head(torch.ones(1, positions, dtype=torch.long), caches[0])  # [1, T, D]
        tail(body(hidden, caches[1]), caches[2], keep=1)
    held = [cache.nbytes() * KV_POSITIONS // positions for cache in caches]
    assert planned.client.kv_bytes == held[0] + held[2]
    assert planned.server.kv_bytes == held[1]


def _parameters(layers: int = 30, **changes: int) -> Parameters:
    return Parameters(
        embedding=changes.get("embedding", 1000),
        layers=(100,) * layers,
        layers_read=(changes.get("read", 100),) * layers,
        final_norm=10,
        output_head=changes.get("output_head", 0),
        tied=not changes.get("output_head", 0),
        cached=8,
        hidden_size=4096,
    )


def test_candidates_stop_where_nothing_is_left_for_the_server():
    def names(layers: int) -> list[str]:
        return [cut.cut for cut in make_plan("m", _parameters(layers), Conditions()).cuts]

    assert names(30) == ["0:30", "1:29", "2:28", "4:26", "8:22"]
    assert names(16) == ["0:16", "1:15", "2:14", "4:12"]
    assert names(2) == ["0:2"]
    assert names(1) == ["0:1"]


def test_further_cuts_join_the_candidates_once():
    plan = make_plan("m", _parameters(), Conditions(), ("3:-1", "2:-2", "3:29"))
    assert [cut.cut for cut in plan.cuts][-2:] == ["8:22", "3:29"]
    with pytest.raises(CutError, match="outside a model of 30 layers"):
        make_plan("m", _parameters(), Conditions(), ("2:31",))


def test_every_parameter_is_on_exactly_one_side():
    parameters = _parameters(output_head=900)
    for cut in make_plan("m", parameters, Conditions(), ("3:-1",)).cuts:
        assert cut.client.parameters + cut.server.parameters == parameters.total
        assert cut.head_layers + cut.body_layers + cut.tail_layers == 30


def test_cuts_that_give_the_text_away_say_so():
    by_name = {cut.cut: cut.warning for cut in make_plan("m", _parameters(), Conditions(), ("0:-2", "2:")).cuts}
    assert "embeddings" in by_name["0:30"]
    assert "final states" in by_name["0:30"]
    assert "final states" not in by_name["0:28"]
    assert "embeddings" not in by_name["2:30"]
    assert by_name["2:28"] is None


def test_without_a_bound_two_and_two_is_recommended():
    plan = make_plan("m", _parameters(), Conditions())
    assert plan.recommended == "2:28"
    assert any("no proof of privacy" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [(1.0, "8:22"), (5e-6, "4:26"), (3.0e-6, "2:28"), (2.8e-6, None)],
)
def test_a_bound_takes_the_deepest_that_fits(gigabytes, expected):
    # bf16, 1 position: (1000 + 10 + 200k) · 2 + 2k · 8 · 2 bytes = 2020 + 432k: 2884, 3748, 5476
    plan = make_plan("m", _parameters(), Conditions(context=1, client_memory_gb=gigabytes))
    assert plan.recommended == expected
    if expected is None:
        assert plan.reason.startswith("none meets the bound")


def test_a_model_too_shallow_has_no_recommendation():
    plan = make_plan("m", _parameters(4), Conditions())
    assert plan.recommended is None
    assert "too few layers" in plan.reason


def test_speed_is_the_sum_of_what_one_token_waits_for():
    conditions = Conditions(rtt_ms=80, client_ms=14, server_ms=10, uplink_mbps=20, downlink_mbps=100)
    plan = make_plan("m", _parameters(), conditions)
    up, down = 4096 * 2 + UPLINK_OVERHEAD, 4096 * 2 + DOWNLINK_OVERHEAD
    seconds = 0.080 + 0.014 + 0.010 + up * 8 / 20e6 + down * 8 / 100e6
    for cut in plan.cuts:
        assert cut.tokens_per_s["bf16"] == pytest.approx(1 / seconds, rel=1e-12)


def test_estimated_time_is_bytes_read_over_bandwidth():
    conditions = Conditions(dtype="float32", context=1000, client_gbps=1, server_gbps=2)
    cut = _at(make_plan("m", _parameters(read=60), conditions), 2)
    # tied: the embedding is read as output head; layers read only their routed experts; 4 layers cache 8 numbers each
    assert cut.client.token_ms == pytest.approx((4 * 60 + 10 + 1000 + 4 * 8 * 1000) * 4 / 1e6)
    assert cut.server.token_ms == pytest.approx((26 * 60 + 26 * 8 * 1000) * 4 / 2e6)
    untied = _at(make_plan("m", _parameters(read=60, output_head=500), conditions), 2)
    assert untied.client.token_ms == pytest.approx((4 * 60 + 10 + 500 + 4 * 8 * 1000) * 4 / 1e6)


def test_experts_not_routed_to_are_not_read():
    config = AutoConfig.for_model("mixtral", **SMALL | VARIANTS["mixtral-experts"][1])
    parameters = count_parameters(config)
    expert = 3 * 32 * 64  # gate, up, down
    assert parameters.layers[0] - parameters.layers_read[0] == 2 * expert


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *itertools.product(("context", "uplink_mbps", "client_gbps", "client_memory_gb"), (0, -1, float("nan"))),
        *itertools.product(("rtt_ms", "server_ms"), (-1, float("inf"))),
        ("dtype", "int3"),
    ],
)
def test_impossible_conditions_are_refused(name, value):
    with pytest.raises(InputError, match=str(value)):
        Conditions(**{name: value})


def test_codecs_are_those_of_the_wire():
    assert set(WIRE_BYTES) <= set(codecs.CODECS.names())
    for name, width in WIRE_BYTES.items():
        assert codecs.CODECS.get(name).row_bytes(4096) == 4096 * width
    assert LOSSLESS == codecs.LOSSLESS_FOR


def test_overheads_are_those_of_frames_in_mid_conversation():
    step = frames.encode(frames.Step(sequence=300, base=3000, count=1, flags=0, digest=bytes(8)))
    result = frames.encode(frames.Result(sequence=300, base=3000, count=1, compute_us=70_000))
    assert (len(step), len(result)) == (UPLINK_OVERHEAD, DOWNLINK_OVERHEAD)


def test_a_configuration_no_model_can_be_built_from_is_refused():
    config = AutoConfig.for_model("llama", **SMALL)
    config.hidden_size = -8
    with pytest.raises(UnsupportedModelError, match="no llama model can be built"):
        count_parameters(config)
