"""`cutlayer watch`: a page in one's own browser that shows what the server reads of a question."""

from __future__ import annotations

import sys

from cutlayer.cli.address import parse_address
from cutlayer.cli.client_options import ConnectOptions, SamplingOptions
from cutlayer.errors import InputError

_GREEDY = SamplingOptions()


def watch(
    *,
    at: ConnectOptions,
    sample: SamplingOptions = _GREEDY,
    listen: str = "127.0.0.1:8420",
    max_tokens: int = 256,
    attack: str = "search",
) -> int:
    """Serve a page to this machine: ask a question, watch the answer come, and see what the server reads meanwhile.

    Parameters
    ----------
    at
        Server and model.
    sample
        Sampling.
    listen
        HOST:PORT on loopback. Port 0 picks a free one.
    max_tokens
        Each answer's longest length.
    attack
        What reads along, e.g. search, search:width=256 or ridge.
    """
    host, port = parse_address(listen)
    sampling = sample.sampling()
    try:
        from cutlayer.gateway.watch_page import WatchPage, serve_page
    except ModuleNotFoundError as error:
        raise InputError(f"the page needs {error.name}; pip install 'cutlayer[gateway]'") from error
    from cutlayer.audit.held import Held
    from cutlayer.audit.watch import Watcher

    held = Held(at.dialler())
    with at.connect(held) as client, Watcher(client, held, attack) as watcher:
        serve_page(WatchPage(client, watcher, max_tokens, sampling), host, port, _ready)
    return 0


def _ready(address: str) -> None:
    sys.stdout.write(f"Open {address}\nCtrl-C ends it.\n")
    sys.stdout.flush()
