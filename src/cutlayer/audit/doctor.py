"""`cutlayer doctor`: the privacy claim, checked on the user's own run.

    diagnosis = diagnose(dialler(url, keys=keys), url)
    diagnosis.exit_code

Two kinds of check complement each other. Searching looks for text, ids, embeddings and logits in what crossed; accounting
computes every outgoing byte a second time, so that there is no room for what nobody thought of searching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.audit.accounting import account
from cutlayer.audit.content import check_embeddings, check_ids, check_logits, check_text
from cutlayer.audit.finding import Diagnosis, Finding
from cutlayer.audit.messages import take_apart
from cutlayer.audit.opened import check_own_opened, check_server_opened
from cutlayer.audit.peer import check_agreement, check_authentication, check_clock, check_encryption, check_round_trip
from cutlayer.audit.probe import make_probe, run_probe
from cutlayer.audit.setting import check_cut, check_defence, check_readability
from cutlayer.audit.traffic import check_frames, check_generation, check_outgoing
from cutlayer.errors import WireError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cutlayer.audit.probe import Probe, ProbeRun
    from cutlayer.audit.stranger import Access
    from cutlayer.client.connect import Options
    from cutlayer.wire.transport import Connect

CAVEAT: Final = (
    "It did get one hidden state per token. That raw data did not cross is no evidence that hidden states cannot be inverted: "
    "at shallow cuts, with public weights, they often can. How much of a prompt comes back at this cut only attacks on it can "
    "measure. Seen was what this process handed to its connection and got from it, not what other software here or there does."
)
# Finding → what its success entitles one to say the server never had
_ABSENT: Final[dict[str, str]] = {
    "text": "the text of prompt or answer",
    "token ids": "token ids",
    "embeddings": "embedding rows",
    "logits": "logits",
}


def diagnose(
    connect: Connect,
    server: str,
    *,
    options: Options | None = None,
    prompt: str | None = None,
    max_tokens: int = 16,
    access: Callable[[], Access] | None = None,
) -> Diagnosis:
    """Run a short generation under observation and check everything about it.

    Args:
        connect: opens a transport to the server.
        server: its address, as the user gave it.
        options: as for `Client`.
        prompt: what to ask; None asks for a random canary phrase.
        max_tokens: the answer's longest length.
        access: tries the server without credentials; called after the run. None leaves that out.

    Raises:
        InputError: a value is wrong, or the line would be insecure.
        ModelNotFoundError: the model is not on this machine.
    """
    probe = make_probe(prompt)
    try:
        run = run_probe(connect, probe, options, max_tokens)
    except WireError as error:
        return _unreached(server, probe, error)
    client = run.client
    messages = take_apart(run.frames, client.codec.row_bytes(client.info.hidden_size))
    explained = account(messages, client, run.witness.head_calls)
    findings = [
        check_generation(run),
        check_frames(run, messages),
        check_outgoing(run, explained),
        check_text(run, messages),
        check_ids(run, messages),
        check_embeddings(run, messages),
        check_logits(run, messages),
        check_server_opened(run),
        check_own_opened(run),
        check_encryption(run, server),
        check_authentication(access() if access else None, server),
        check_clock(run),
        check_agreement(run),
        check_round_trip(run),
        check_cut(run),
        check_defence(run, explained),
        check_readability(run),
    ]
    return Diagnosis(
        server=server,
        model=run.info.model,
        cut=f"{client.cut} of {client.cut.layers}",
        canary=probe.canary,
        findings=findings,
        crossed=_crossed(run, explained.rows),
        never_crossed=_never_crossed(findings, embedded=client.cut.head_layers > 0),
        caveat=CAVEAT,
    )


def _unreached(server: str, probe: Probe, error: WireError) -> Diagnosis:
    return Diagnosis(
        server=server,
        model="",
        cut="",
        canary=probe.canary,
        findings=[Finding("connection", "fail", f"{error}")],
        crossed="No session was opened, so nothing of the prompt left this machine.",
        never_crossed="Nothing can be said about this server: no run took place.",
        caveat="",
    )


def _crossed(run: ProbeRun, rows: int) -> str:
    width = run.client.codec.row_bytes(run.client.info.hidden_size)
    return (
        f"{run.sent.frames} frames with {run.sent.bytes:,} bytes went out, of which {rows * width:,} are the hidden states of "
        f"{rows} positions ({width:,} bytes each) and the rest are headers; {run.received.frames} frames with "
        f"{run.received.bytes:,} bytes came back."
    )


def _never_crossed(findings: Sequence[Finding], *, embedded: bool) -> str:
    status = {finding.name: finding.status for finding in findings}
    if embedded and status["embeddings"] == "warning":
        status["embeddings"] = "ok"  # tokens can be looked up, but from rows that are no embeddings
    absent = [words for name, words in _ABSENT.items() if status[name] == "ok"]
    doubtful = [words for name, words in _ABSENT.items() if status[name] != "ok"]
    sentences = [f"In what crossed there are none of: {', '.join(absent)}."] if absent else []
    if status["outgoing bytes"] == "ok":
        sentences.append("No byte that left is unexplained.")
    if status["server tensors"] == "ok":
        sentences.append("By its own word the server opened no embedding, outer layer, final norm or output head.")
    if doubtful:
        sentences.append(f"This cannot be said of: {', '.join(doubtful)}; see above.")
    return " ".join(sentences)
