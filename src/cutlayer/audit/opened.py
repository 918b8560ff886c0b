"""Which checkpoint tensors each side says it opened, against what the cut entitles it to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cutlayer.audit.finding import SHOWN, Finding, first_few
from cutlayer.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cutlayer.audit.finding import Evidence
    from cutlayer.audit.probe import ProbeRun
    from cutlayer.types import Cut

_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """Number of the layer a checkpoint tensor belongs to; None for embedding, final norm and output head."""
    match = _LAYER.search(name)
    return int(match[1]) if match else None


def within(names: Iterable[str], cut: Cut) -> list[str]:
    """Those of layers the server runs."""
    return [name for name in names if (layer := layer_of(name)) is not None and cut.start <= layer < cut.stop]


def check_server_opened(run: ProbeRun) -> Finding:
    """The server's list: layers of the cut, and nothing else."""
    name, info, cut = "server tensors", run.info, run.client.cut
    inside = within(Checkpoint(run.client.directory).names(), cut)
    allowed = frozenset(within(info.opened, cut))
    foreign = [f"{tensor} ({_whose(tensor)})" for tensor in info.opened if tensor not in allowed]
    evidence: Evidence = {
        "opened": info.opened_count,
        "listed": len(info.opened),
        "in_cut": len(inside),
        "foreign": foreign[:SHOWN],
        "foreign_count": len(foreign),
    }
    if foreign:
        return Finding(name, "fail", f"The server says it opened what is not its part: {first_few(foreign)}.", evidence)
    if info.opened_count > len(inside):
        return Finding(
            name,
            "fail",
            f"The server says it opened {info.opened_count} tensors; layers {cut} have only {len(inside)}.",
            evidence,
        )
    own_word = (
        "This is the server's own word, and public weights can be fetched by anyone. To make sure that this process needs "
        "no others, give its machine a copy of the model whose other tensors are all zeros: answers must not change."
    )
    if not info.opened or len(info.opened) < info.opened_count:
        return Finding(
            name,
            "warning",
            f"The server names {len(info.opened)} of {info.opened_count} tensors it opened, all of layers {cut}; the others it "
            f"leaves to belief. {own_word}",
            evidence,
        )
    return Finding(
        name,
        "ok",
        f"The server lists {info.opened_count} tensors, all of layers {cut}: no embedding, outer layer, final norm or output "
        f"head. {own_word}",
        evidence,
    )


def check_own_opened(run: ProbeRun) -> Finding:
    """This side's list: nothing of the cut."""
    name, cut, opened = "own tensors", run.client.cut, run.client.parts.head.opened
    foreign = within(opened, cut)
    evidence: Evidence = {"opened": len(opened), "foreign": foreign[:SHOWN], "foreign_count": len(foreign)}
    if foreign:
        return Finding(
            name,
            "fail",
            f"This side opened tensors of the server's layers: {first_few(foreign)}; this is a bug.",
            evidence,
        )
    return Finding(
        name,
        "ok",
        f"This side opened {len(opened)} tensors, none of layers {cut}: the server's work was not done here.",
        evidence,
    )


def _whose(name: str) -> str:
    layer = layer_of(name)
    if layer is not None:
        return f"layer {layer} is the client's"
    for part, words in (("embed", "embedding"), ("wte", "embedding"), ("head", "output head"), ("norm", "final norm")):
        if part in name:
            return words
    return "in no layer"
