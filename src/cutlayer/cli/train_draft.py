"""`cutlayer train-draft`: make a draft head for one model and cut, on the model's own words."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from cutlayer.cli.client_options import ConnectOptions
from cutlayer.cli.short_prompts import LONGEST_PROMPT, short_prompts
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from cutlayer.text.tokenizer import Tokenizer

_Flag = Annotated[bool, Parameter(negative=())]


def train_draft(
    *,
    at: ConnectOptions,
    out: Path | None = None,
    prompts: Path | None = None,
    corpus: str | None = None,
    answers: int = 400,
    texts: int = 400,
    length: int = 256,
    sessions: int = 8,
    outputs: int = 16384,
    rank: int = 96,
    epochs: int = 3,
    rate: float = 3e-4,
    seed: int = 0,
    fresh: _Flag = False,
    json: _Flag = False,
) -> int:
    """Train a draft head: a small layer on this machine that guesses at the next tokens.

    The model answers prompts through the server and reads texts; the head learns to say what the model would. Data and
    checkpoints are kept beside FILE until it is written: run the same again after an interruption and it goes on.

    Parameters
    ----------
    at
        Server and model.
    out
        The file to write, for --speculate auto:head=FILE. Default: where `auto` finds it for this model and cut.
    prompts
        JSON Lines of {"text": …} to answer, of at most 128 tokens each; longer ones are left out. Default: 200 questions of
        our own.
    corpus
        Text to read as well: encyclopedia, where installed, or a UTF-8 file.
    answers
        Answers to gather; prompts are used again, sampled, when there are fewer.
    texts
        Texts to read of the corpus at most.
    length
        Tokens of a text, or of a prompt and its answer.
    sessions
        Answers given side by side.
    outputs
        Tokens the head may guess: the most frequent ones.
    rank
        Of the changes to the model's last layer.
    epochs
        Passes over the data at most; training stops when held-out acceptance does.
    rate
        Highest learning rate.
    seed
        Of order and initial weights.
    fresh
        Discard what an earlier run left.
    json
        Print one JSON object with what was reached.
    """
    from cutlayer.cli.train_draft_progress import TrainProgress
    from cutlayer.client.speculation.head.collect import answer_jobs, collect, text_jobs
    from cutlayer.client.speculation.head.file import own_head, save_head
    from cutlayer.client.speculation.head.run import Run
    from cutlayer.client.speculation.head.training import Recipe, train

    _check(out, answers, texts, length, sessions)
    recipe = Recipe(outputs=outputs, rank=rank, epochs=epochs, rate=rate, seed=seed).checked()
    with at.connect() as client:
        own = own_head(client.trusted)
        out = out or own
        jobs = [
            *answer_jobs(short_prompts(prompts, client.tokenizer), answers, length - LONGEST_PROMPT),
            *text_jobs(_texts(corpus, client.tokenizer, texts, length)),
        ]
        run = Run(out.with_name(out.name + ".training"), client.trusted, jobs, recipe, at.defence, fresh=fresh)
        with TrainProgress(run.folder) as progress:
            progress.collecting(len(jobs))
            collect(at.dialler(), client.trusted, at.defence, jobs, run.folder, sessions, progress.collected)
            trained = train(
                client.trusted, run.files(held=False), run.files(held=True), recipe, run.checkpoint, progress.trained
            )
        summary = run.summary(trained)
        save_head(trained.head, client.trusted, summary, out)
        run.remove()
    use = "auto" if out == own else f"auto:head={out}"
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode({"path": str(out), **summary}).decode() + "\n")
    else:
        sys.stdout.write(
            f"{out}: {summary['tokens_per_trip']:.2f} tokens per round trip on held-out answers with a chain of "
            f"{recipe.depth}, {summary['tokens_per_trip_untrained']:.2f} before training\n"
            f"Use it with --speculate {use}\n"
        )
    return 0


def _check(out: Path | None, answers: int, texts: int, length: int, sessions: int) -> None:
    if out is not None and not out.parent.is_dir():
        raise InputError(f"cannot write {out}: {out.parent} is no directory")
    if answers < 20:
        raise InputError(f"{answers} answers are too few to hold some back; ask for 20 or more")
    if texts < 0 or not 1 <= sessions <= 64:
        raise InputError(f"--texts is 0 or more and --sessions 1 to 64, not {texts} and {sessions}")
    if not LONGEST_PROMPT < length <= 1024:
        raise InputError(f"a text has {LONGEST_PROMPT + 1} to 1024 tokens, not {length}")


def _texts(corpus: str | None, tokenizer: Tokenizer, count: int, length: int) -> list[list[int]]:
    """Token ids of at most `count` texts."""
    from cutlayer.corpora.encyclopedia import documents
    from cutlayer.corpora.prompts import read_bounded
    from cutlayer.corpora.split import is_test

    if corpus is None or count == 0:
        return []
    if corpus == "encyclopedia":
        chosen = (document for document in documents() if not is_test(document.id))
        return [tokenizer.encode(document.text)[:length] for document, _ in zip(chosen, range(count), strict=False)]
    try:
        ids = tokenizer.encode(read_bounded(Path(corpus)).decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{corpus} is not UTF-8: {error.reason} at byte {error.start}") from None
    return [ids[start : start + length] for start in range(0, len(ids) - 1, length)][:count]
