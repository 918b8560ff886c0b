"""Did text, token ids, embedding rows or logits cross?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

from cutlayer.audit.finding import SHOWN, Finding, first_few
from cutlayer.audit.nearest import nearest_embeddings, share_identified
from cutlayer.audit.needles import Needle, embedding_needles, id_needles, logit_needles, text_needles
from cutlayer.audit.search import Haystack, search
from cutlayer.errors import WireError
from cutlayer.wire import frames

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cutlayer.audit.finding import Evidence, Status
    from cutlayer.audit.messages import Message
    from cutlayer.audit.probe import ProbeRun

SAME_ROW_COSINE: Final = 0.999
"""From here on a row counts as an embedding row; rounding to bfloat16 leaves 0.99999."""
NOTEWORTHY_SHARE: Final = 0.05
"""Of positions that a look-up among embeddings identifies."""

NO_EVIDENCE: Final = (
    "Absence of raw data is no evidence that hidden states cannot be inverted; only attacking them measures that."
)


def check_text(run: ProbeRun, messages: Sequence[Message]) -> Finding:
    """Prompt and answer, whole or in parts, in common encodings."""
    needles = [*text_needles(run.probe.prompt, "the prompt"), *text_needles(run.answer, "the answer")]
    if run.probe.canary is not None:
        needles += text_needles(run.probe.canary, "the canary")
    return _searched("text", "prompt or answer text", _after_asking(run, messages), needles)


def check_ids(run: ProbeRun, messages: Sequence[Message]) -> Finding:
    """Token ids of prompt and answer, four or more in a row."""
    needles = [*id_needles(run.prompt_ids, "the prompt"), *id_needles(run.answer_ids, "the answer")]
    return _searched("token ids", "token ids", _after_asking(run, messages), needles)


def check_logits(run: ProbeRun, messages: Sequence[Message]) -> Finding:
    """Logits in what was sent, and rows as wide as the vocabulary."""
    name, client = "logits", run.client
    width, vocabulary = client.info.hidden_size, len(client.parts.head.embedding())
    if width == vocabulary:
        return Finding(
            name,
            "fail",
            f"Hidden size and vocabulary are both {width}: by size, a row of hidden states cannot be told from logits.",
        )
    needles = logit_needles(run.witness.logits, run.witness.logit_peaks)
    sent = [item for item in _after_asking(run, messages) if item.label.endswith("sent)")]
    finding = _searched(name, "logits", sent, needles)
    if finding.status != "ok":
        return finding
    words = f" Every row, either way, is {width} values wide (the hidden size), none {vocabulary:,} (the vocabulary)."
    row_bytes = client.codec.row_bytes(width)
    oversized = [
        message.label
        for message in messages
        if isinstance(message.header, frames.Step | frames.Result)
        and len(message.payload) not in {0, message.header.count * row_bytes}
    ]
    if oversized:
        return Finding(name, "fail", f"Payloads of unexpected size may hold logits: {first_few(oversized)}.")
    return Finding(name, "ok", finding.explanation + words, finding.evidence)


def check_embeddings(run: ProbeRun, messages: Sequence[Message]) -> Finding:
    """Rows of the embedding matrix: as bytes anywhere, and as the nearest neighbour of every row sent."""
    name, client = "embeddings", run.client
    rows, truth = _sent_rows(run, messages)
    if not len(rows):
        return Finding(name, "fail", "No readable hidden states were recorded, so nothing can be said about them.")
    embedding = client.parts.head.embedding()  # [V, D]
    ids = [*run.prompt_ids, *run.answer_ids]
    sent = [item for item in _after_asking(run, messages) if item.label.endswith("sent)")]
    places, searcher, _ = search(sent, embedding_needles(embedding, ids))
    near = nearest_embeddings(rows, embedding)
    closest = float(near.cosine.max())
    share = share_identified(near.token, truth)
    as_sent = client.codec.decode(client.codec.encode(embedding[near.token]), embedding.shape[1])
    exact = int((as_sent == rows).all(dim=-1).sum())
    evidence: Evidence = {
        "closest_cosine": round(closest, 6),
        "rows": len(rows),
        "rows_equal_to_an_embedding": exact,
        "share_identified_by_lookup": round(share, 4),
        "patterns": searcher.count,
        "found": places[:SHOWN],
    }
    lookup = (
        f"the closest of {len(rows)} rows to any of the {len(embedding):,} embeddings has cosine {closest:.3f}, and the nearest "
        f"embedding is the position's own token for {share:.0%} of them"
    )
    leaked = bool(exact or places or closest >= SAME_ROW_COSINE)
    status: Status = "fail" if leaked else "warning" if share > NOTEWORTHY_SHARE else "ok"
    if client.cut.head_layers == 0:
        status = "fail" if leaked or share > NOTEWORTHY_SHARE else "warning"
        return Finding(
            name,
            status,
            f"The cut starts at layer 0 (k = 0): what is sent are the prompt's embeddings, under defence "
            f"{client.defence.describe()!r}; {lookup}. Whoever has the public weights can look tokens up. Start the server with "
            "a cut that leaves layers on this side, e.g. --cut 2:-2.",
            evidence,
        )
    if leaked:
        return Finding(
            name, status, f"Embedding rows crossed: {lookup}; {exact} are equal; {first_few(places)}.", evidence
        )
    if status == "warning":
        return Finding(
            name,
            status,
            f"No embedding row crossed, but a plain look-up already recovers tokens: {lookup}. Cut deeper or choose a defence.",
            evidence,
        )
    return Finding(name, status, f"No embedding row crossed: {lookup}. {NO_EVIDENCE}", evidence)


def _searched(name: str, what: str, haystacks: list[Haystack], needles: Iterable[Needle]) -> Finding:
    places, searcher, size = search(haystacks, needles)
    evidence: Evidence = {
        "patterns": searcher.count,
        "frames": len(haystacks),
        "bytes": size,
        "accidental_hits_expected": float(f"{searcher.accidents(size):.1e}"),
        "found": places[:SHOWN],
        "found_count": len(places),
    }
    if places:
        return Finding(name, "fail", f"Found {what}: {first_few(places)}.", evidence)
    if not searcher.count or not size:
        missing = "frames" if searcher.count else f"{what} long enough to recognise"
        return Finding(name, "warning", f"Not checked: there were no {missing}. Ask something longer.", evidence)
    return Finding(
        name,
        "ok",
        f"None of {searcher.count} patterns of {what} is in the {len(haystacks)} frames searched.",
        evidence,
    )


def _after_asking(run: ProbeRun, messages: Sequence[Message]) -> list[Haystack]:
    """Frames that can depend on the prompt. The server's error messages are plain words of its own and left out."""
    return [
        Haystack(message.label, message.captured.data)
        for message in messages
        if message.number >= run.asked_at
        and not (message.captured.direction == "received" and isinstance(message.header, frames.Failure))
    ]


def _sent_rows(run: ProbeRun, messages: Sequence[Message]) -> tuple[torch.Tensor, list[int]]:
    """All hidden states sent, as the server decodes them [N, D], and the token at the position of each."""
    client, ids = run.client, [*run.prompt_ids, *run.answer_ids]
    row_bytes = client.codec.row_bytes(client.info.hidden_size)
    parts: list[torch.Tensor] = []
    truth: list[int] = []
    for message in messages:
        step = message.header
        if not isinstance(step, frames.Step) or step.base + step.count > len(ids):
            continue
        try:
            # What was appended to the rows, if anything, is the frame check's business.
            decoded = client.codec.decode(message.payload[: step.count * row_bytes], client.info.hidden_size)
        except WireError:
            continue
        parts.append(decoded.float())
        truth += ids[step.base : step.base + len(decoded)]
    return torch.cat(parts) if parts else torch.empty(0, client.info.hidden_size), truth
