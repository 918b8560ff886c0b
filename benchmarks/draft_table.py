"""The table of candidates that ships for SmolLM2: what the model says after short contexts, from text of its own alone.

The model writes both sides of short conversations: handed the beginning of a user's turn and at most four words of it, it goes
on as the user would (Xu et al. 2024, "Magpie", arXiv 2406.08464), and then it answers. Answers are greedy in every other batch,
else drawn at a temperature of 0.7. No prompt of any benchmark is looked at. Besides, every token of the vocabulary is read once
after the beginning of an answer, so that none is without candidates.

Conversations are kept in a folder, batch by batch: run the same again after an interruption and it goes on. Writes
src/cutlayer/client/speculation/tables/FINGERPRINT.safetensors; prints and writes the record ``draft_table``.

Notation: B conversations of a batch, T tokens, V vocabulary, K candidates.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from cyclopts import App
from rich.progress import track
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from cutlayer import config
from cutlayer.client.speculation import table as tables
from cutlayer.client.speculation.contexts import LONGEST
from cutlayer.client.speculation.table import CandidateTable, Entry, build, entries_of, load_table, save_table
from cutlayer.models.locate import fingerprint, locate
from cutlayer.records.record import Figure, exact, new_record, proportion
from cutlayer.text.tokenizer import Message, Tokenizer
from report import command, finish

app = App(help=__doc__)

_USER_TOKENS = 60
_ENOUGH = 0.85
"""Share of a batch that has to be finished; the others are cut there."""
_HELD = 0
"""The batch that is kept out of the table, to measure on."""
_MARK = "@@"
OPENINGS = (
    "", "", "", "", "How", "What", "Why", "Explain", "Write a", "Write a Python", "Write a function", "Create a", "List",
    "Give me", "Describe", "Implement", "Can you", "I", "Make a table", "Rewrite", "Summarize", "Compare",
    "Write a short story", "Write a poem", "Write code", "Design a", "Generate a JSON", "Write a program", "Tell me",
    "Help me", "Write a SQL", "Write a script", "Plan", "Write an email", "Convert", "Write a JavaScript", "Write a letter",
    "Correct", "Provide",
)  # fmt: skip


class Conversation(NamedTuple):
    """One prompt and the model's answer."""

    ids: list[int]
    """[T]"""
    start: int
    """Where the answer begins."""
    tokens: list[list[int]]
    """[T − start, K], the likeliest at each place of the answer."""
    chances: list[list[float]]


class _Continued(NamedTuple):
    prompt: list[int]
    said: list[int]
    """What follows it, without the stop token."""
    ended: bool
    tokens: list[list[int]]
    """At each of those, and where the stop token stood: see `Conversation`."""
    chances: list[list[float]]


class _Likeliest(LogitsProcessor):  # type: ignore[misc]
    """Writes down what is likeliest at each step, and leaves the logits as they are."""

    def __init__(self) -> None:
        self.tokens: list[torch.Tensor] = []
        self.chances: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        values, tokens = scores.topk(tables.WIDTH)  # [B, K]
        self.tokens.append(tokens)
        self.chances.append((values - scores.logsumexp(-1, keepdim=True)).exp())
        return scores


class _MostAreDone(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, start: int, stop_ids: Sequence[int]) -> None:
        self._start = start
        self._stop_ids = torch.tensor(stop_ids)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        done = torch.isin(input_ids[:, self._start :], self._stop_ids).any(1)
        return torch.full_like(done, bool(done.float().mean() >= _ENOUGH))


class Writer:
    """The model as both sides of a conversation.

    Args:
        directory: of the model.
    """

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer(directory)
        self.model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        text = self.tokenizer.library_tokenizer.decode(self.tokenizer.render([Message("user", _MARK)]))
        self._before, after = text.split(_MARK)
        self._after = self._encode(after)

    def batch(self, size: int, length: int, seed: int) -> list[Conversation]:
        """Conversations of one seed.

        Args:
            size: B
            length: tokens of an answer at most.
            seed: of openings and of every draw.
        """
        chance = random.Random(seed)
        torch.manual_seed(seed)
        openings = [self._encode(self._before + chance.choice(OPENINGS)) for _ in range(size)]
        users = self._go_on(openings, _USER_TOKENS, 0.9)
        prompts = [[*user.prompt, *user.said, *self._after] for user in users if user.ended]
        answers = self._go_on(prompts, length, 0.7 if seed % 2 else 0.0)
        return [Conversation([*a.prompt, *a.said], len(a.prompt), a.tokens, a.chances) for a in answers if a.said]

    @torch.inference_mode()
    def _go_on(self, prompts: Sequence[list[int]], most: int, temperature: float) -> list[_Continued]:
        stop_ids = list(self.tokenizer.stop_ids)
        width = max(map(len, prompts))
        ids = torch.tensor([[stop_ids[0]] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        seen = _Likeliest()
        drawn = {"temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
        out = cast("Any", self.model).generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=bool(temperature), **drawn,
            logits_processor=LogitsProcessorList([seen]), eos_token_id=stop_ids, pad_token_id=stop_ids[0],
            stopping_criteria=StoppingCriteriaList([_MostAreDone(width, stop_ids)]),
        )  # fmt: skip
        tokens, chances = torch.stack(seen.tokens, 1).tolist(), torch.stack(seen.chances, 1).tolist()  # [B, T, K]
        found = []
        for row, prompt in enumerate(prompts):
            said = out[row, width:].tolist()
            end = next((i for i, token in enumerate(said) if token in stop_ids), None)
            places = len(said) if end is None else end + 1  # where an answer ends is something to learn, too
            found.append(_Continued(prompt, said[:end], end is not None, tokens[row][:places], chances[row][:places]))
        return found

    @torch.inference_mode()
    def every_token(self, vocabulary: int, size: int = 256) -> Iterator[Entry]:
        """What may follow each token at the beginning of an answer."""
        model = cast("Any", self.model)
        prompt = torch.tensor([self.tokenizer.render([Message("user", "Tell me about it.")])])
        cache = model(input_ids=prompt, use_cache=True).past_key_values
        for start in track(range(0, vocabulary, size), description="every token"):
            ids = torch.arange(start, min(start + size, vocabulary))
            held = copy.deepcopy(cache)
            held.batch_repeat_interleave(len(ids))
            logits = model(input_ids=ids[:, None], past_key_values=held).logits[:, -1].float()  # [B, V]
            best = logits.softmax(-1).topk(tables.WIDTH)
            for token, tokens, chances in zip(ids.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
                yield Entry([token], tokens, chances)

    def _encode(self, text: str) -> list[int]:
        return cast("list[int]", self.tokenizer.library_tokenizer(text, add_special_tokens=False)["input_ids"])


@app.default
def draft_table(
    *,
    model: str = "smollm2-135m",
    batches: int = 64,
    size: int = 64,
    length: int = 256,
    folder: Path | None = None,
    write: bool = True,
) -> None:
    """Generate, build, measure and record.

    Parameters
    ----------
    model
        Name or directory.
    batches
        Of conversations, the one that is held out included.
    size
        Conversations of a batch.
    length
        Tokens of an answer at most.
    folder
        Where conversations are kept until the table is made; default: beside the models.
    write
        Whether to write the table and the record.
    """
    directory = locate(model)
    print_of_model = fingerprint(directory)
    folder = folder or config.home() / "draft_table" / f"{print_of_model}-{size}-{length}"
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(directory)
    vocabulary = writer.model.config.vocab_size
    shards = [folder / f"{i:04}.npz" for i in range(batches)]
    for seed in track(range(batches), description="conversations"):
        if not shards[seed].is_file():
            _save(writer.batch(size, length, seed), shards[seed])
    held = _load(shards[_HELD])
    made = [shard for i, shard in enumerate(shards) if i != _HELD]
    every = list(writer.every_token(vocabulary))
    table = build([*every, *_entries(made)], vocabulary)
    part = build([*every, *_entries(made[: len(made) // 4])], vocabulary)
    figures = _measure(table, held) | {f"{name}_quarter": figure for name, figure in _measure(part, held).items()}
    spoken = [len(conversation.ids) - conversation.start for shard in made for conversation in _load(shard)]
    figures["conversations"] = exact(len(spoken), "count")
    figures["tokens"] = exact(sum(spoken), "tokens")
    figures["contexts"] = exact(len(table.tensors["context_keys"]), "count")
    target = Path(tables.__file__).parent / "tables" / f"{print_of_model}.safetensors"
    if not write:
        target = folder / target.name
    target.parent.mkdir(exist_ok=True)
    save_table(table, print_of_model, target)
    load_table(target, print_of_model, vocabulary)
    figures["file_bytes"] = exact(target.stat().st_size, "bytes")
    config_ = {
        "model": model, "dtype": "bfloat16", "batches": batches, "conversations_per_batch": size, "answer_tokens": length,
        "temperature_of_users": 0.9, "temperature_of_answers": "0, 0.7 in turn", "openings": OPENINGS,
        "held_out": f"batch {_HELD}: whether its next token is the table's first candidate, or any, of the longest context known",
    }  # fmt: skip
    samples = {"tokens_per_answer": spoken}
    finish(new_record("draft_table", command("draft_table"), config_, figures, samples), write=write)


def _measure(table: CandidateTable, held: Sequence[Conversation]) -> dict[str, Figure]:
    first = any_ = known = total = 0
    for conversation in held:
        for at in range(conversation.start, len(conversation.ids)):
            context, token = tuple(conversation.ids[at - LONGEST : at]), conversation.ids[at]
            pair = table.get(context)
            candidates = pair or table.get(context[-1:])
            first += next(iter(candidates), None) == token
            any_ += token in candidates
            known += bool(pair)
            total += 1
    counts = {"heldout_first": first, "heldout_any": any_, "heldout_context_known": known}
    return {name: proportion(count, total) for name, count in counts.items()}


def _entries(shards: Sequence[Path]) -> Iterator[Entry]:
    for shard in shards:
        for conversation in _load(shard):
            before = conversation.start - 1
            nothing: list[Any] = [[]] * before
            yield from entries_of(
                conversation.ids[: before + len(conversation.tokens)],
                [*nothing, *conversation.tokens], [*nothing, *conversation.chances], before,
            )  # fmt: skip


def _save(conversations: Sequence[Conversation], path: Path) -> None:
    """Written whole or not at all."""
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(
        partial,
        lengths=np.array([(len(c.ids), c.start, len(c.tokens)) for c in conversations], np.int32),
        ids=np.array([token for c in conversations for token in c.ids], np.int32),
        tokens=np.array([row for c in conversations for row in c.tokens], np.int32).reshape(-1, tables.WIDTH),
        chances=np.array([row for c in conversations for row in c.chances], np.float32).reshape(-1, tables.WIDTH),
    )
    partial.replace(path)


def _load(path: Path) -> list[Conversation]:
    with np.load(path) as held:
        ids, tokens, chances = (held[name].tolist() for name in ("ids", "tokens", "chances"))
        found, at, row = [], 0, 0
        for length, start, rows in held["lengths"].tolist():
            found.append(
                Conversation(ids[at : at + length], start, tokens[row : row + rows], chances[row : row + rows])
            )
            at, row = at + length, row + rows
    return found


if __name__ == "__main__":
    app()
