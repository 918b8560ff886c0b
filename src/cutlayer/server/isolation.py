"""Keep tokenizers out of the server process.

Transformers imports the tokenizers library as a side effect of importing any model. A ``None`` entry in ``sys.modules``
makes that import fail, which transformers takes for "not installed" and works without.
"""

from __future__ import annotations

import sys
from typing import Final

from cutlayer.errors import CutlayerError

FORBIDDEN: Final = ("tokenizers", "sentencepiece", "tiktoken", "cutlayer.text", "cutlayer.client", "cutlayer.store")


def forbid_text_libraries() -> None:
    """Make every later import of a `FORBIDDEN` module fail in this process.

    Raises:
        CutlayerError: one of them is loaded already.
    """
    for name in (*FORBIDDEN, "transformers"):  # which notes once whether tokenizers can be had
        if sys.modules.get(name) is not None:
            raise CutlayerError(
                f"{name} is already loaded in the server process; start the server in a process of its own"
            )
    for name in FORBIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]
