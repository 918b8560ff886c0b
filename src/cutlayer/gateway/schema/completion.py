"""`/v1/completions`: what is asked."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec

from cutlayer.gateway.problems import ApiError
from cutlayer.gateway.schema.asked import MOST_LOGPROBS, Asked

MOST_PROMPTS: Final = 128
DEFAULT_TOKENS: Final = 16
"""OpenAI's."""
REFUSED: Final[dict[str, str]] = {
    "suffix": "text cannot be inserted before a suffix: the model only continues",
    "tools": "tools are not offered",
}
HARMLESS: Final[dict[str, tuple[Any, ...]]] = {"suffix": (None, ""), "tools": (None, [])}

_Ids = Annotated[list[int], msgspec.Meta(min_length=1)]


class CompletionRequest(Asked, kw_only=True):
    """Texts to be continued, without a chat template."""

    prompt: str | Annotated[list[str | int | _Ids], msgspec.Meta(min_length=1)]
    """A text, token ids, or a list of either (not mixed)."""
    echo: bool | None = None
    """Give the prompt back before its continuation; with `logprobs`, its tokens' too."""
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=MOST_LOGPROBS)] | None = None
    best_of: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The same as `n`, if given: answers are not ranked."""

    def check(self) -> None:
        """See `Asked.check`."""
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise ApiError.bad("'max_tokens' may be 0 only with 'echo': true", "max_tokens")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ApiError.bad(
                "'best_of' is not supported beyond 'n': answers are not ranked; send 'n' and choose among them",
                "best_of",
            )
        if len(self.prompts()) > MOST_PROMPTS:
            raise ApiError.bad(f"at most {MOST_PROMPTS} prompts at a time", "prompt")

    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or token ids.

        Raises:
            ApiError: texts and ids are mixed.
        """
        given = self.prompt
        if isinstance(given, str):
            return [given]
        ids = [item for item in given if isinstance(item, int)]
        if len(ids) == len(given):
            return [ids]
        texts: list[str | list[int]] = [item for item in given if isinstance(item, str)]
        lists: list[str | list[int]] = [item for item in given if isinstance(item, list)]
        if len(given) in (len(texts), len(lists)):
            return texts or lists
        raise ApiError.bad("'prompt' is a string, token ids, or a list of one kind of these", "prompt")
