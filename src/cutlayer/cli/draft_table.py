"""`cutlayer draft-table`: note what a model says after short contexts, so that guesses are good from the first word on."""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cutlayer.cli.client_options import ConnectOptions
from cutlayer.cli.short_prompts import short_prompts
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cutlayer.client.speculation.head.collect import Job
    from cutlayer.client.speculation.table import Entry
    from cutlayer.client.trusted import Trusted


def draft_table(
    *,
    at: ConnectOptions,
    prompts: Path | None = None,
    answers: int = 400,
    length: int = 128,
    sessions: int = 8,
    out: Path | None = None,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Have the model answer prompts through the server, and note what it finds likely after one to four tokens.

    The table is used from then on wherever this model is asked with --speculate auto or recycling. What it holds is guessed
    in every conversation: give no prompts whose answers the server must not learn of. Answers are kept until the table is
    written: run the same again after an interruption and it goes on.

    Parameters
    ----------
    at
        Server and model.
    prompts
        JSON Lines of {"text": …} to answer, of at most 128 tokens each; longer ones are left out. Default: 200 questions of
        our own.
    answers
        Answers to gather; prompts are used again, sampled, when there are fewer.
    length
        Tokens of an answer at most.
    sessions
        Answers given side by side.
    out
        File to write instead of this user's table for the model.
    json
        Print one JSON object with what was noted.
    """
    from cutlayer.cli.train_draft_progress import TrainProgress
    from cutlayer.client.speculation.head.collect import answer_jobs, collect, file_of
    from cutlayer.client.speculation.table import build, own_table, save_table
    from cutlayer.wire.private_files import PRIVATE

    if answers < 1 or not 1 <= length <= 1024 or not 1 <= sessions <= 64:
        raise InputError(
            f"--answers is 1 or more, --length 1 to 1024 and --sessions 1 to 64, not {answers}, {length} and {sessions}"
        )
    if out is not None and not out.parent.is_dir():
        raise InputError(f"cannot write {out}: {out.parent} is no directory")
    with at.connect() as client:
        fingerprint = client.info.fingerprint
        target = out or own_table(fingerprint)
        jobs = answer_jobs(short_prompts(prompts, client.tokenizer), answers, length)
        folder = target.with_name(f"{target.name}.{_digest(client.trusted, at.defence, jobs)}")
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot use {folder}: {error.strerror}") from error
        with TrainProgress(folder) as progress:
            progress.collecting(len(jobs))
            collect(at.dialler(), client.trusted, at.defence, jobs, folder, sessions, progress.collected)
            table = build(_entries([file_of(job, folder) for job in jobs]), len(client.parts.head.embedding()))
            save_table(table, fingerprint, target, PRIVATE)  # answers quote what they were asked
    shutil.rmtree(folder)
    noted = {"path": str(target), "answers": len(jobs), "contexts": len(table.tensors["context_keys"])}
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(noted).decode() + "\n")
    else:
        sys.stdout.write(f"{target}: {noted['contexts']} contexts of two to four tokens, from {len(jobs)} answers\n")
    return 0


def _digest(trusted: Trusted, defence: str, jobs: Sequence[Job]) -> str:
    """What was gathered of another model, or under other settings, is not taken for this."""
    import msgspec

    settings = (trusted.info.fingerprint, trusted.cut, trusted.dtype, defence, [tuple(job) for job in jobs])
    return hashlib.sha256(msgspec.json.encode(settings)).hexdigest()[:8]


def _entries(files: Sequence[Path]) -> Iterator[Entry]:
    """Of the model's own words."""
    from cutlayer.client.speculation.head.examples import load_example
    from cutlayer.client.speculation.table import WIDTH, entries_of

    for file in files:
        example = load_example(file)
        likely, chances = example.likely[:, :WIDTH].tolist(), example.chances[:, :WIDTH].float().tolist()
        yield from entries_of(example.ids.tolist(), likely, chances, int(example.answer) - 1)
