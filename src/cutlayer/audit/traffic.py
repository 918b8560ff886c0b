"""Is every captured byte where the protocol says, and every byte that left explained?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.audit.finding import SHOWN, Finding, first_few
from cutlayer.wire.codecs import LOSSLESS_FOR

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.audit.accounting import Account
    from cutlayer.audit.finding import Evidence
    from cutlayer.audit.messages import Message
    from cutlayer.audit.probe import ProbeRun


def check_generation(run: ProbeRun) -> Finding:
    """Did the run the other checks look at happen at all?"""
    evidence: Evidence = {"prompt_tokens": len(run.prompt_ids), "answer_tokens": len(run.answer_ids)}
    if run.failure is not None:
        return Finding(
            "generation",
            "fail",
            f"The generation ended after {len(run.answer_ids)} tokens: {run.failure}. The rest covers what crossed until then.",
            evidence,
        )
    return Finding(
        "generation",
        "ok",
        f"A prompt of {len(run.prompt_ids)} tokens was answered with {len(run.answer_ids)}.",
        evidence,
    )


def check_frames(run: ProbeRun, messages: Sequence[Message]) -> Finding:
    """Every frame whole, in its one spelling, and no longer than its positions need."""
    faults = [f"{message.label}: {message.fault}" for message in messages if message.fault]
    row_bytes = run.client.codec.row_bytes(run.client.info.hidden_size)
    evidence: Evidence = {
        "frames_sent": run.sent.frames,
        "frames_received": run.received.frames,
        "frames_unrecorded": run.missed.frames,
        "row_bytes": row_bytes,
        "faults": faults[:SHOWN],
        "faults_count": len(faults),
    }
    if faults:
        return Finding("frames", "fail", f"{len(faults)} frames are not as documented: {first_few(faults)}.", evidence)
    if not run.complete:
        return Finding(
            "frames",
            "fail",
            f"{run.missed.frames} frames ({run.missed.bytes:,} bytes) exceeded the recorder's memory and were not looked at; "
            "ask something shorter.",
            evidence,
        )
    return Finding(
        "frames",
        "ok",
        f"All {len(messages)} frames hold the documented fields, then positions × {row_bytes:,} bytes, and nothing else.",
        evidence,
    )


def check_outgoing(run: ProbeRun, account: Account) -> Finding:
    """Every outgoing header and row as computed here a second time."""
    codec = run.client.codec.name
    evidence: Evidence = {
        "headers_explained": account.headers,
        "headers_unexplained": account.unexplained_headers[:SHOWN],
        "rows_explained": account.rows,
        "rows_unexplained": account.unexplained_rows[:SHOWN],
        "codec_error": account.codec_error,
    }
    problems = [*account.unexplained_headers, *account.unexplained_rows]
    if problems:
        return Finding(
            "outgoing bytes",
            "fail",
            f"Something left that head, defence and codec did not compute: {first_few(problems)}.",
            evidence,
        )
    if not account.rows:
        return Finding(
            "outgoing bytes", "fail", "No hidden states were sent, so nothing can be said about them.", evidence
        )
    bound = 0.0 if LOSSLESS_FOR[run.client.dtype] == codec else run.client.codec.precision
    if account.codec_error > bound:
        return Finding(
            "outgoing bytes",
            "fail",
            f"Codec {codec} changed a row by {account.codec_error:.2g} of its length, more than the {bound:.2g} its rounding "
            "explains; it may carry something else.",
            evidence,
        )
    return Finding(
        "outgoing bytes",
        "ok",
        f"All {account.rows} rows sent are what head, defence and codec {codec} give when computed again, and all "
        f"{account.headers} headers follow from public values: no outgoing byte is unexplained.",
        evidence,
    )
