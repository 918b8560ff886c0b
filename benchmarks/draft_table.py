"""The table of candidates that ships for SmolLM2: what the model says after short contexts, from text of its own alone.

The text is what ``cutlayer bench self_talk`` left: conversations of the model with itself. Besides, every token of the vocabulary
is read once after the beginning of an answer, so that none is without candidates.

Writes src/cutlayer/client/speculation/tables/FINGERPRINT.safetensors; prints and writes the record ``draft_table``.

Notation: B tokens of a batch, K candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from cyclopts import App, Parameter
from rich.progress import track
from transformers import AutoModelForCausalLM

from cutlayer.client.speculation import table as tables
from cutlayer.client.speculation.contexts import LongestKnown
from cutlayer.client.speculation.head.examples import load_example
from cutlayer.client.speculation.table import LONGEST, CandidateTable, Entry, build, entries_of, load_table, save_table
from cutlayer.models.locate import fingerprint, locate
from cutlayer.records.record import Figure, exact, new_record, proportion
from cutlayer.text.tokenizer import Message, Tokenizer
from report import command, finish
from self_talk import SelfTalk

app = App(help=__doc__)


@app.default
def draft_table(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    batches: int = 64,
    out: Path | None = None,
    write: bool = True,
) -> None:
    """Build, measure and record.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, at which the conversations were recorded; the table does not depend on it.
    batches
        Of conversations, the one that is held out included.
    out
        The file to write; default: that of the package, without a record one beside the conversations.
    write
        Whether to write the record.
    """
    directory = locate(model)
    name = fingerprint(directory)
    talk = SelfTalk.find(model, cut, batches)
    learned, held = talk.learned(), talk.held()
    network = cast("Any", AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval())
    vocabulary = network.config.vocab_size
    every = list(_every_token(network, Tokenizer(directory), vocabulary))
    table = build(chain(every, _entries(learned)), vocabulary)
    part = build(chain(every, _entries(learned[: len(learned) // 4])), vocabulary)
    figures = _measure(table, held) | {f"{key}_quarter": figure for key, figure in _measure(part, held).items()}
    spoken = [len(example.ids) - int(example.answer) for example in map(load_example, learned)]
    figures["conversations"] = exact(len(spoken), "count")
    figures["tokens"] = exact(sum(spoken), "tokens")
    figures["contexts"] = exact(len(table.tensors["context_keys"]), "count")
    target = out or (Path(tables.__file__).parent / "tables" if write else talk.folder) / f"{name}.safetensors"
    save_table(table, name, target)
    load_table(target, name, vocabulary)
    figures["file_bytes"] = exact(target.stat().st_size, "bytes")
    measured = "whether its next token is the table's first candidate, or any, of the longest context known"
    finish(
        new_record(
            "draft_table", command("draft_table"),
            {"model": model, "dtype": "bfloat16", "text": talk.described(), "held_out": measured},
            figures, {"tokens_per_answer": spoken},
        ),
        write=write,
    )  # fmt: skip


@torch.inference_mode()
def _every_token(model: Any, tokenizer: Tokenizer, vocabulary: int, size: int = 256) -> Iterator[Entry]:
    """What may follow each token at the beginning of an answer."""
    prompt = torch.tensor([tokenizer.render([Message("user", "Tell me about it.")])])
    cache = model(input_ids=prompt, use_cache=True).past_key_values
    for start in track(range(0, vocabulary, size), description="every token"):
        ids = torch.arange(start, min(start + size, vocabulary))  # [B]
        held = copy.deepcopy(cache)
        held.batch_repeat_interleave(len(ids))
        logits = model(input_ids=ids[:, None], past_key_values=held).logits[:, -1].float()  # [B, V]
        best = logits.softmax(-1).topk(tables.WIDTH)
        for token, tokens, chances in zip(ids.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
            yield Entry([token], tokens, chances)


def _measure(table: CandidateTable, held: Sequence[Path]) -> dict[str, Figure]:
    longest = LongestKnown(table)
    first = any_ = known = total = 0
    for example in map(load_example, held):
        ids = example.ids.tolist()
        for at in range(int(example.answer), len(ids)):
            context = tuple(ids[at - LONGEST : at])
            several = longest.propose(context)
            candidates = several or table.get(context[-1:])
            first += next(iter(candidates), None) == ids[at]
            any_ += ids[at] in candidates
            known += bool(several)
            total += 1
    counts = {"heldout_first": first, "heldout_any": any_, "heldout_context_known": known}
    return {name: proportion(count, total) for name, count in counts.items()}


def _entries(learned: Sequence[Path]) -> Iterator[Entry]:
    for path in track(learned, description="conversations"):
        example = load_example(path)
        likely, chances = example.likely[:, : tables.WIDTH].tolist(), example.chances[:, : tables.WIDTH].tolist()
        yield from entries_of(example.ids.tolist(), likely, chances, int(example.answer) - 1)


if __name__ == "__main__":
    app()
