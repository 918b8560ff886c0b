"""The privacy setting in effect: where the cut is, what is done to hidden states before they leave, what audits measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.audit.finding import Finding
from cutlayer.audit.measured import statement_for
from cutlayer.defences.defence import MECHANISMS

if TYPE_CHECKING:
    from cutlayer.audit.accounting import Account
    from cutlayer.audit.finding import Evidence
    from cutlayer.audit.probe import ProbeRun

FEWEST_HEAD_LAYERS: Final = 2
FEWEST_TAIL_LAYERS: Final = 1


def check_cut(run: ProbeRun) -> Finding:
    """Layers kept on this side."""
    cut = run.client.cut
    head, tail = cut.head_layers, cut.tail_layers
    evidence: Evidence = {"k": head, "m": tail, "layers": cut.layers}
    concerns = []
    if head < FEWEST_HEAD_LAYERS:
        concerns.append(
            f"with k = {head} layers before the server, it gets next to embeddings; keep {FEWEST_HEAD_LAYERS} or more"
        )
    if tail < FEWEST_TAIL_LAYERS:
        concerns.append(
            "with m = 0 layers after the server, it computes the last hidden states and can read the answer off them with the "
            "public output head; keep 1 or more"
        )
    if concerns:
        return Finding("cut", "warning", f"Cut {cut} of {cut.layers}: {'; '.join(concerns)}.", evidence)
    return Finding(
        "cut",
        "ok",
        f"k = {head} layers run here before the server's {cut.body_layers}, m = {tail} after. Depth is no proof of privacy.",
        evidence,
    )


def check_defence(run: ProbeRun, account: Account) -> Finding:
    """The mechanism, and whether it did what its name says."""
    described = run.client.defence.describe()
    evidence: Evidence = {"defence": described, "largest_relative_change": account.defence_change}
    kind = described.partition(":")[0]
    if kind == "none":
        if account.defence_change:
            return Finding(
                "defence",
                "fail",
                f"The defence calls itself 'none' but changed a hidden state by {account.defence_change:.2g} of its length.",
                evidence,
            )
        return Finding(
            "defence",
            "warning",
            "None: hidden states leave exactly as the head computed them. Whoever has the public weights may recover the prompt "
            "from them; see --defence.",
            evidence,
        )
    guarantee = MECHANISMS.get(kind).card.guarantee if kind in MECHANISMS.names() else "unknown"
    if not account.defence_change:
        return Finding("defence", "fail", f"Defence {described!r} is in effect but changed nothing.", evidence)
    return Finding(
        "defence",
        "ok",
        f"{described}; it changed rows by up to {account.defence_change:.2g} of their length. What is guaranteed: {guarantee}",
        evidence,
    )


def check_readability(run: ProbeRun) -> Finding:
    """What attacks read at this setting, as far as that was measured. Never ``ok``: being checked is no bound on being read."""
    return Finding("readability", "warning", statement_for(run.client))
