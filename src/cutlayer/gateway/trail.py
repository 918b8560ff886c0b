"""Log-probabilities in step with the text: a token is shown when its text is, and one that ended in a stop string never is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.gateway.schema.answers import CompletionLogprobs, TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.generation import Piece
    from cutlayer.client.logprobs import Logprobs
    from cutlayer.text.tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Trail:
    """One answer's tokens, held back as its text is.

    Args:
        ends: token ids that end an answer and are not to be shown.
    """

    def __init__(self, ends: frozenset[int]) -> None:
        self._ends = ends
        self._held: list[Piece] = []
        self._given = 0

    def push(self, piece: Piece) -> list[Piece]:
        """Tokens whose text has been given out with this piece."""
        if piece.logprobs is None:
            return []
        self._given += len(piece.text)
        if piece.token not in self._ends:
            self._held.append(piece)
        shown = [held for held in self._held if held.start < self._given]
        self._held = self._held[len(shown) :]
        return shown

    def finish(self, cut_off: bool) -> list[Piece]:
        """The rest, such as special tokens at the end; nothing if a stop string cut it off."""
        rest, self._held = self._held, []
        return [] if cut_off else rest


def for_chat(tokens: Sequence[Logprobs], tokenizer: Tokenizer) -> list[TokenLogprob]:
    """As `/v1/chat/completions` answers."""
    shown: list[TokenLogprob] = []
    for entry in tokens:
        name, *names = tokenizer.pieces([entry.token, *(token for token, _ in entry.top)])
        top = [TopLogprob(other, value, _bytes(other)) for other, (_, value) in zip(names, entry.top, strict=True)]
        shown.append(TokenLogprob(name, entry.logprob, _bytes(name), top))
    return shown


def for_completion(
    tokens: Sequence[int], entries: Sequence[Logprobs | None], starts: Sequence[int], tokenizer: Tokenizer
) -> CompletionLogprobs:
    """As `/v1/completions` answers.

    Args:
        tokens: ids.
        entries: of each; None for a prompt's first.
        starts: where each begins in the text, in characters.
        tokenizer: names them. Two tokens of one name are one entry among the likeliest, the likelier.
    """
    return CompletionLogprobs(
        tokens=tokenizer.pieces(tokens),
        token_logprobs=[None if entry is None else entry.logprob for entry in entries],
        top_logprobs=[None if entry is None else _likeliest(entry, tokenizer) for entry in entries],
        text_offset=list(starts),
    )


def _likeliest(entry: Logprobs, tokenizer: Tokenizer) -> dict[str, float]:
    """By name; with the token itself, so that there may be one more than was asked for, as OpenAI has it."""
    own = [] if any(token == entry.token for token, _ in entry.top) else [(entry.token, entry.logprob)]
    listed = [*entry.top, *own]
    named = zip(tokenizer.pieces([token for token, _ in listed]), (value for _, value in listed), strict=True)
    return dict(sorted(named, key=lambda pair: pair[1]))  # of one name, the later and likelier stays


def _bytes(name: str) -> list[int] | None:
    return None if _REPLACEMENT in name else list(name.encode())
