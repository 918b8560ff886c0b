"""How long idle OpenMP threads spin before they sleep.

Between two matrix products of one forward pass the next one is microseconds away, so a short spin pays. Between two steps
it is a network away. libgomp's default spins for milliseconds, and where client and server share a machine each side's
idle threads then take a core from the other. Who uses the Python API sets GOMP_SPINCOUNT before importing torch.
"""

from __future__ import annotations

import os
import sys
from typing import Final

SPIN_COUNT: Final = "3000"
"""About 0.1 to 0.2 ms on current processors."""


def limit_spinning() -> None:
    """Set libgomp's spin count for this process and those it starts, unless the user chose one. Before torch is loaded."""
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
