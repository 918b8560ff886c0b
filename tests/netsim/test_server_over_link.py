"""The product over an emulated link: a server under mutual TLS at an address that is not loopback."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cutlayer.cli.server_process import ServerProcess
from cutlayer.client.connect import Options, connect
from cutlayer.netsim.link import Link
from cutlayer.netsim.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RTT_MS = 80.0


def test_answer_crosses_the_link(tun: None, tiny_with_text: Callable[[str], Path]) -> None:
    model = str(tiny_with_text("llama"))
    options = Options(model=model)
    with Link(Shape(rtt_ms=RTT_MS, mbit_s=100), "tun") as link:
        with ServerProcess(model, host=link.far_host, prefix=link.prefix) as server:
            assert server.url.startswith(f"wss://{link.far_host}:")
            with connect(server.url, keys=server.client_keys, options=options) as client:
                assert client.security().protocol == "TLSv1.3"
                started = time.perf_counter()
                result = client.generate("hello", max_tokens=6, raw=True, ignore_eos=True).result()
                seconds = time.perf_counter() - started
            log = server.log()
        assert '"congestion": "cubic"' in log
    assert len(result.token_ids) == 6
    assert seconds >= (1 + result.steps) * RTT_MS / 1e3, "each round trip takes the link's"
