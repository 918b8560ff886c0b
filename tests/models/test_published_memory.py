"""The plan against memory figures worked out by hand for well-known models, from the public facts in `configs`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cutlayer.models.conditions import Conditions
from cutlayer.models.family import read_config_file
from cutlayer.models.parameters import count_parameters
from cutlayer.models.plan import Plan, make_plan

if TYPE_CHECKING:
    from cutlayer.models.cost import CutCost

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


def _at(plan: Plan, depth: int) -> CutCost:
    return next(cut for cut in plan.cuts if cut.head_layers == cut.tail_layers == depth)


@pytest.mark.parametrize(("model", "depth", "form", "printed"), CLIENT_CELLS)
def test_client_memory_agrees_with_the_published_table(
    published_plans: dict[str, Plan], model: str, depth: int, form: str, printed: str
) -> None:
    assert _agrees(getattr(_at(published_plans[model], depth).client.weights, form) / 1e9, printed)


@pytest.mark.parametrize(("model", "form", "printed"), SERVER_CELLS)
def test_server_memory_agrees_with_the_published_table(
    published_plans: dict[str, Plan], model: str, form: str, printed: str
) -> None:
    assert _agrees(getattr(_at(published_plans[model], 2).server.weights, form) / 1e9, printed)


@pytest.mark.parametrize("model", PUBLISHED)
def test_totals_are_the_published_ones(published_plans: dict[str, Plan], model: str) -> None:
    assert f"{published_plans[model].parameters.total / 1e9:.3f}" == PUBLISHED[model][2]


def test_client_cache_of_the_published_table(published_plans: dict[str, Plan]) -> None:
    for model, at_8k in {"mistral-7b-v0.3": "0.13", "qwen2.5-7b": "0.07"}.items():
        assert f"{8 * _at(published_plans[model], 2).client.kv_bytes / 1e9:.2f}" == at_8k
