"""Conversations of a model with itself: what the table and the draft head that ship for it are made from.

The model writes both sides of short conversations: handed the beginning of a user's turn and at most four words of it, it goes
on as the user would (Xu et al. 2024, "Magpie", arXiv 2406.08464), and then it answers. Answers are greedy in every other batch,
else drawn at a temperature of 0.7. No prompt of any benchmark is looked at.

Batch by batch into a folder: run the same again after an interruption and it goes on.

Notation: B conversations of a batch, T tokens, D hidden size, K likeliest tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import torch
from cyclopts import App, Parameter
from rich.progress import track
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, DynamicCache
from transformers.masking_utils import eager_mask

from cutlayer import config
from cutlayer.client.speculation.head.examples import LIKELIEST, Example, save_example
from cutlayer.errors import InputError
from cutlayer.models.family import read_config
from cutlayer.models.locate import fingerprint, locate
from cutlayer.models.packed import pack
from cutlayer.text.tokenizer import Message, Tokenizer
from cutlayer.types import Cut

app = App(help=__doc__)

USER_TEMPERATURE = 0.9
ANSWER_TEMPERATURES = (0.0, 0.7)
"""Of batches in turn."""
_USER_TOKENS = 60
_ENOUGH = 0.85
"""Share of a batch that has to be finished; the others are cut there."""
_THINNED = 0.75
"""Finished conversations leave the batch once only this share of it goes on."""
_MARK = "@@"
_ATTENTION = "grouped"
OPENINGS = (
    "", "", "", "", "How", "What", "Why", "Explain", "Write a", "Write a Python", "Write a function", "Create a", "List",
    "Give me", "Describe", "Implement", "Can you", "I", "Make a table", "Rewrite", "Summarize", "Compare",
    "Write a short story", "Write a poem", "Write code", "Design a", "Generate a JSON", "Write a program", "Tell me",
    "Help me", "Write a SQL", "Write a script", "Plan", "Write an email", "Convert", "Write a JavaScript", "Write a letter",
    "Correct", "Provide",
)  # fmt: skip


class _Said(NamedTuple):
    """What follows one prompt."""

    prompt: list[int]
    ids: list[int]
    """[T], a stop token included."""
    ended: bool
    returned: torch.Tensor
    """[P + T, D], of the prompt as well; of the last token only if it was read."""
    likely: torch.Tensor
    """[T, K], of the distribution each of `ids` was chosen from."""
    chances: torch.Tensor


class Writer:
    """The model as both sides of a conversation.

    Args:
        directory: of the model.
        layer: whose output is kept as the state that returns from the server.
    """

    def __init__(self, directory: Path, layer: int) -> None:
        self.tokenizer = Tokenizer(directory)
        AttentionInterface.register(_ATTENTION, _grouped)
        AttentionMaskInterface.register(_ATTENTION, eager_mask)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, attn_implementation=_ATTENTION)
        self.model = cast("Any", model.eval())
        pack(self.model)
        self._states: list[torch.Tensor] = []
        self.model.base_model.layers[layer].register_forward_hook(
            lambda module, inputs, output: self._states.append(output if torch.is_tensor(output) else output[0])
        )
        text = self.tokenizer.library_tokenizer.decode(self.tokenizer.render([Message("user", _MARK)]))
        self._before, after = text.split(_MARK)
        self._after = self._encode(after)

    def batch(self, size: int, length: int, seed: int) -> list[Example]:
        """Conversations of one seed.

        Args:
            size: B
            length: tokens of an answer at most.
            seed: of openings and of every draw.
        """
        chance = random.Random(seed)
        torch.manual_seed(seed)
        openings = [self._encode(self._before + chance.choice(OPENINGS)) for _ in range(size)]
        users = self._go_on(openings, _USER_TOKENS, USER_TEMPERATURE)
        prompts = [[*user.prompt, *user.ids[:-1], *self._after] for user in users if user.ended]
        answers = self._go_on(prompts, length, ANSWER_TEMPERATURES[seed % len(ANSWER_TEMPERATURES)])
        return [_example(answer) for answer in answers if len(answer.ids) > 1]

    @torch.inference_mode()
    def _go_on(self, prompts: Sequence[list[int]], most: int, temperature: float) -> list[_Said]:
        """Until most have ended."""
        stop = torch.tensor(list(self.tokenizer.stop_ids))
        width = max(map(len, prompts))
        ids = torch.tensor([[int(stop[0])] * (width - len(prompt)) + list(prompt) for prompt in prompts])  # [B, P]
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        cache = DynamicCache()
        rows = torch.arange(len(prompts))  # conversations that go on
        steps: list[tuple[torch.Tensor, ...]] = []
        self._states.clear()
        states: list[tuple[torch.Tensor, torch.Tensor]] = []
        done = torch.zeros(len(prompts), dtype=torch.bool)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        for _ in range(most):
            output = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
            states.append((rows, self._states.pop()))
            logits = output.logits[:, -1].float()  # [B, V]
            best = logits.topk(LIKELIEST)
            chances = (best.values - logits.logsumexp(-1, keepdim=True)).exp()
            law = (logits / temperature).softmax(-1) if temperature else None
            token = best.indices[:, 0] if law is None else torch.multinomial(law, 1)[:, 0]  # [B]
            steps.append((rows, token, best.indices.int(), chances.bfloat16()))
            done[rows] |= torch.isin(token, stop)
            if done.float().mean() >= _ENOUGH:
                break
            on = ~done[rows]
            if on.float().mean() < _THINNED:
                cache.batch_select_indices(on.nonzero()[:, 0])
                rows, token, mask, positions = rows[on], token[on], mask[on], positions[on]
            ids, positions = token[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        return [self._said(row, prompt, width, steps, states) for row, prompt in enumerate(prompts)]

    def _said(
        self, row: int, prompt: list[int], width: int, steps: Sequence[tuple[torch.Tensor, ...]],
        states: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> _Said:  # fmt: skip
        """One conversation's share of a batch."""
        ids: list[int] = []
        likely, chances, ended = [], [], False
        returned = [states[0][1][row, width - len(prompt) :]]
        for rows, token, tokens, p in steps:
            at = int((rows == row).nonzero()[0])
            ids.append(int(token[at]))
            likely.append(tokens[at])
            chances.append(p[at])
            if ids[-1] in self.tokenizer.stop_ids:
                ended = True
                break
        for rows, state in states[1 : len(ids)]:
            returned.append(state[int((rows == row).nonzero()[0])])
        return _Said(prompt, ids, ended, torch.cat(returned), torch.stack(likely), torch.stack(chances))

    def _encode(self, text: str) -> list[int]:
        return cast("list[int]", self.tokenizer.library_tokenizer(text, add_special_tokens=False)["input_ids"])


def _example(said: _Said) -> Example:
    """Prompt and answer without its last token, which was never read."""
    before = len(said.prompt) - 1
    ids = torch.tensor([*said.prompt, *said.ids[:-1]], dtype=torch.int32)  # [T]
    likely = torch.cat([torch.zeros(before, LIKELIEST, dtype=torch.int32), said.likely])
    chances = torch.cat([torch.zeros(before, LIKELIEST, dtype=torch.bfloat16), said.chances])
    return Example(ids, said.returned, likely, chances, torch.tensor([before + 1], dtype=torch.int32))


def _grouped(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, scaling: float,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attention that reads the keys of a group of heads once. query [B, H, T, d], key and value [B, G, S, d]."""
    size, heads, length, width = query.shape
    groups = key.shape[1]
    asked = query.reshape(size, groups, heads // groups * length, width)
    scores = asked @ key.transpose(-1, -2) * scaling  # [B, G, H/G·T, S]
    scores = scores.view(size, heads, length, -1)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(value).view(size, groups, heads // groups * length, -1)
    return (weights @ value).view(size, heads, length, width).transpose(1, 2).contiguous(), None


class SelfTalk(NamedTuple):
    """What was said, in a folder beside the models."""

    folder: Path
    batches: int
    size: int
    length: int

    @classmethod
    def find(cls, model: str, cut: str, batches: int, size: int = 128, length: int = 128) -> SelfTalk:
        """The conversations of these settings, whether or not they were held yet."""
        directory = locate(model)
        stop = Cut.parse(cut, read_config(directory).num_hidden_layers).stop
        return cls(
            config.home() / "self_talk" / f"{fingerprint(directory)}-{stop}-{size}-{length}", batches, size, length
        )

    def batch(self, seed: int) -> Path:
        """Folder of one batch; there once it is complete."""
        return self.folder / f"{seed:04}"

    def held(self) -> list[Path]:
        """Conversations to measure on: those of the first batch, answered greedily."""
        return self._of(0)

    def learned(self) -> list[Path]:
        """Conversations to learn from: all others."""
        return [path for seed in range(1, self.batches) for path in self._of(seed)]

    def described(self) -> dict[str, Any]:
        """For a record."""
        return {
            "conversations": f"{self.batches} batches of {self.size}, answers of at most {self.length} tokens",
            "held_out": "the first batch", "temperature_of_users": USER_TEMPERATURE,
            "temperatures_of_answers": ANSWER_TEMPERATURES, "openings": OPENINGS,
        }  # fmt: skip

    def _of(self, seed: int) -> list[Path]:
        if not self.batch(seed).is_dir():
            raise InputError(f"{self.batch(seed)} is missing; run `cutlayer bench self_talk --batches {self.batches}`")
        return sorted(self.batch(seed).glob("*.safetensors"))


@app.default
def self_talk(
    *,
    model: str = "smollm2-135m",
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = "2:-2",
    batches: int = 64,
    first: int = 0,
    step: int = 1,
    size: int = 128,
    length: int = 128,
) -> None:
    """Have the conversations that are missing.

    Parameters
    ----------
    model
        Name or directory.
    cut
        A:B, the server's layers; the states after the last of them are kept.
    batches
        Of conversations.
    first, step
        Take every `step`-th batch from this one on: several processes with one thread each are faster than one with several.
    size
        Conversations of a batch.
    length
        Tokens of an answer at most.
    """
    directory = locate(model)
    talk = SelfTalk.find(model, cut, batches, size, length)
    talk.folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(directory, Cut.parse(cut, read_config(directory).num_hidden_layers).stop - 1)
    for seed in track(range(first, batches, step), description="conversations"):
        target = talk.batch(seed)
        if target.is_dir():
            continue
        partial = target.with_suffix(".partial")
        partial.mkdir(exist_ok=True)
        for i, example in enumerate(writer.batch(size, length, seed)):
            save_example(example, partial / f"{i:04}.safetensors")
        partial.rename(target)


if __name__ == "__main__":
    app()
