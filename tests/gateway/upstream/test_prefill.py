"""Nothing is sent to an obfuscated upstream before it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Upstream


def test_hints_are_refused_and_send_nothing(upstream: Upstream) -> None:
    messages = [{"role": "user", "content": "Who owes Ann twelve"}]
    refused = upstream.door.post("/v1/prefill", {"messages": messages})
    assert refused.status_code == 400
    assert "upstream" in refused.json()["error"]["message"]
    assert not upstream.engine.bodies
    assert upstream.door.gateway.pool.in_use == 0
    assert upstream.door.chat("Who owes Ann twelve", max_tokens=2).status_code == 200
