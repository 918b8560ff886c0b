"""The arithmetic of `cutlayer plan`, and what it recommends."""

from __future__ import annotations

import itertools

import pytest
from transformers import AutoConfig

from cutlayer.errors import CutError, InputError, UnsupportedModelError
from cutlayer.models.conditions import Conditions
from cutlayer.models.cost import DOWNLINK_OVERHEAD, LOSSLESS, UPLINK_OVERHEAD, CutCost, row_bytes
from cutlayer.models.parameters import Parameters, count_parameters
from cutlayer.models.plan import Plan, make_plan
from cutlayer.types import DTYPE_NAMES
from cutlayer.wire import codecs, frames


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


def _default(plan: Plan) -> CutCost:
    return next(cut for cut in plan.cuts if cut.cut == "2:28")


def test_candidates_stop_where_nothing_is_left_for_the_server() -> None:
    def names(layers: int) -> list[str]:
        return [cut.cut for cut in make_plan("m", _parameters(layers), Conditions()).cuts]

    assert names(30) == ["0:30", "1:29", "2:28", "4:26", "8:22"]
    assert names(16) == ["0:16", "1:15", "2:14", "4:12"]
    assert names(2) == ["0:2"]
    assert names(1) == ["0:1"]


def test_further_cuts_join_the_candidates_once() -> None:
    plan = make_plan("m", _parameters(), Conditions(), ("3:-1", "2:-2", "3:29"))
    assert [cut.cut for cut in plan.cuts][-2:] == ["8:22", "3:29"]
    with pytest.raises(CutError, match="outside a model of 30 layers"):
        make_plan("m", _parameters(), Conditions(), ("2:31",))


def test_every_parameter_is_on_exactly_one_side() -> None:
    parameters = _parameters(output_head=900)
    for cut in make_plan("m", parameters, Conditions(), ("3:-1",)).cuts:
        assert cut.client.parameters + cut.server.parameters == parameters.total
        assert cut.head_layers + cut.body_layers + cut.tail_layers == 30


def test_cuts_that_give_the_text_away_say_so() -> None:
    by_name = {cut.cut: cut.warning for cut in make_plan("m", _parameters(), Conditions(), ("0:-2", "2:")).cuts}
    assert "embeddings" in by_name["0:30"]
    assert "final states" in by_name["0:30"]
    assert "final states" not in by_name["0:28"]
    assert "embeddings" not in by_name["2:30"]
    assert by_name["2:28"] is None


def test_without_a_bound_two_and_two_is_recommended() -> None:
    plan = make_plan("m", _parameters(), Conditions())
    assert plan.recommended == "2:28"
    assert any("no proof of privacy" in note for note in plan.notes)


def test_a_tied_output_head_is_held_twice_in_bfloat16_alone() -> None:
    notes = {
        dtype: " ".join(make_plan("m", _parameters(embedding=28_000_000), Conditions(dtype=dtype)).notes)
        for dtype in DTYPE_NAMES
    }
    assert [dtype for dtype, said in notes.items() if "0.06 GB on top" in said] == ["bfloat16"]


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [(1.0, "8:22"), (5e-6, "4:26"), (3.0e-6, "2:28"), (2.8e-6, None)],
)
def test_a_bound_takes_the_deepest_that_fits(gigabytes: float, expected: str | None) -> None:
    # bf16, 1 position: (1000 + 10 + 200k) · 2 + 2k · 8 · 2 bytes = 2020 + 432k: 2884, 3748, 5476
    plan = make_plan("m", _parameters(), Conditions(context=1, client_memory_gb=gigabytes))
    assert plan.recommended == expected
    if expected is None:
        assert plan.reason.startswith("none meets the bound")


def test_a_model_too_shallow_has_no_recommendation() -> None:
    plan = make_plan("m", _parameters(4), Conditions())
    assert plan.recommended is None
    assert "too few layers" in plan.reason


def test_speed_is_the_sum_of_what_one_token_waits_for() -> None:
    conditions = Conditions(rtt_ms=80, client_ms=14, server_ms=10, uplink_mbps=20, downlink_mbps=100)
    plan = make_plan("m", _parameters(), conditions)
    up, down = 4096 * 2 + UPLINK_OVERHEAD, 4096 * 2 + DOWNLINK_OVERHEAD
    seconds = 0.080 + 0.014 + 0.010 + up * 8 / 20e6 + down * 8 / 100e6
    for cut in plan.cuts:
        assert cut.tokens_per_s["bf16"] == pytest.approx(1 / seconds, rel=1e-12)


def test_estimated_time_is_bytes_read_over_bandwidth() -> None:
    conditions = Conditions(dtype="float32", context=1000, client_gbps=1, server_gbps=2)
    cut = _default(make_plan("m", _parameters(read=60), conditions))
    # tied: the embedding is read as output head; layers read only their routed experts; 4 layers cache 8 numbers each
    assert cut.client.token_ms == pytest.approx((4 * 60 + 10 + 1000 + 4 * 8 * 1000) * 4 / 1e6)
    assert cut.server.token_ms == pytest.approx((26 * 60 + 26 * 8 * 1000) * 4 / 2e6)
    untied = _default(make_plan("m", _parameters(read=60, output_head=500), conditions))
    assert untied.client.token_ms == pytest.approx((4 * 60 + 10 + 500 + 4 * 8 * 1000) * 4 / 1e6)


_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "vocab_size": 96,
}


def test_experts_not_routed_to_are_not_read() -> None:
    config = AutoConfig.for_model("mixtral", **_SMALL, num_local_experts=4, num_experts_per_tok=2)
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
def test_impossible_conditions_are_refused(name: str, value: float | str) -> None:
    with pytest.raises(InputError, match=str(value)):
        Conditions(**{name: value})


@pytest.mark.parametrize("hidden_size", [5, 64, 576, 4096])
def test_codecs_are_those_of_the_wire(hidden_size: int) -> None:
    built_in = {
        name for name in codecs.CODECS.names() if type(codecs.CODECS.get(name)).__module__.startswith("cutlayer.")
    }
    assert row_bytes(hidden_size) == {name: codecs.CODECS.get(name).row_bytes(hidden_size) for name in built_in}
    assert LOSSLESS == codecs.LOSSLESS_FOR


def test_overheads_are_those_of_frames_in_mid_conversation() -> None:
    step = frames.encode(frames.Step(sequence=300, base=3000, count=1, flags=0, digest=bytes(8)))
    result = frames.encode(frames.Result(sequence=300, base=3000, count=1, compute_us=70_000))
    assert (len(step), len(result)) == (UPLINK_OVERHEAD, DOWNLINK_OVERHEAD)


def test_a_configuration_no_model_can_be_built_from_is_refused() -> None:
    config = AutoConfig.for_model("llama", **_SMALL)
    config.hidden_size = -8
    with pytest.raises(UnsupportedModelError, match="no llama model can be built"):
        count_parameters(config)
