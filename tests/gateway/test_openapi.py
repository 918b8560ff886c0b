"""The published description is valid, and requests generated from it (and against it) never cause a server error."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from cutlayer.gateway.openapi import description

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Door

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
EXAMPLES = 40
PATHS = {
    "/v1/chat/completions", "/v1/completions", "/v1/prefill", "/v1/tokenize", "/v1/detokenize", "/v1/models",
    "/v1/models/{id}", "/health", "/ready",
}  # fmt: skip


def test_schemas_are_schemas_and_every_reference_leads_somewhere() -> None:
    document = description("tiny")
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [found for value in node.values() for found in references(value)]
        return [found for value in node for found in references(value)] if isinstance(node, list) else []

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known
    asked = document["components"]["schemas"]["ChatRequest"]
    assert asked["additionalProperties"] is False
    assert set(asked["required"]) == {"model", "messages"}
    assert "tools" not in asked["properties"]


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_generated_requests_cause_no_server_error(
    open_door: Callable[..., Door], mode: schemathesis.GenerationMode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a socket, with requests that follow the description and ones that break it; answers are checked against it too."""
    door = open_door(served=True, max_tokens=2)
    real = type(door.gateway.session).generate
    # Short answers, whatever length was drawn: this is about the interface.
    monkeypatch.setattr(
        type(door.gateway.session),
        "generate",
        lambda *a, **fields: real(*a, **{**fields, "max_tokens": min(fields["max_tokens"], 2)}),
    )
    statuses: Counter[int] = Counter()
    with door.served() as (url, _):
        document = schemathesis.openapi.from_url(f"{url}/openapi.json")
        operations = [found.ok() for found in document.get_all_operations()]
        assert {operation.path for operation in operations} == PATHS
        for operation in operations:
            if not operation.body and mode is schemathesis.GenerationMode.NEGATIVE:
                continue  # nothing there to break

            @settings(
                max_examples=EXAMPLES if operation.body else 5,
                database=None,
                derandomize=True,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def run(case: schemathesis.Case) -> None:
                answer = case.call(base_url=url)
                statuses[answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            run()
    usual = 200 if mode is schemathesis.GenerationMode.POSITIVE else 400
    assert statuses[usual] > EXAMPLES, statuses
    assert not any(line["event"] == "failed" for line in door.log())
