"""Where things live on this machine.

`CUTLAYER_HOME` moves everything; otherwise the XDG cache directory is used.
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """Directory of everything cutlayer stores for this user (not created here)."""
    chosen = os.environ.get("CUTLAYER_HOME")
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache") / "cutlayer"


def models_directory() -> Path:
    """Directory that holds one folder per pulled model."""
    return home() / "models"
