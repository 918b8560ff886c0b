"""A node of language-pipes, and beside it how many bytes it has sent in HTTP requests to other nodes.

Run by the peer's own interpreter:  python language_pipes_node.py CONFIG.toml COUNTER
"""

from __future__ import annotations

import http.client
import importlib
import logging
import sys
from pathlib import Path
from typing import Any

_sent = 0


def count_requests(counter: Path) -> None:
    """Keep the bytes of all HTTP requests of this process, headers included, in a file."""
    plain = http.client.HTTPConnection.send

    def send(self: http.client.HTTPConnection, data: Any) -> None:
        global _sent
        _sent += len(data) if hasattr(data, "__len__") else 0
        counter.write_text(str(_sent))
        plain(self, data)

    http.client.HTTPConnection.send = send  # type: ignore[method-assign]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    count_requests(Path(sys.argv[2]))
    importlib.import_module("language_pipes.runner").LpRunner(Path(sys.argv[1]))
