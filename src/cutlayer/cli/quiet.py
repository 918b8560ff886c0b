"""Keep torchao's start-up chatter off the terminal.

Where torchao is installed (extra `int8`), transformers imports it with every model, and it then reports kernels for accelerators
that this machine lacks and its own use of torch. Warnings about anything else are not touched.
"""

from __future__ import annotations

import logging
from typing import Final

_CHATTY: Final = ("torchao", "torch.utils._pytree")


def quiet_imports() -> None:
    """Before torch is loaded."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
