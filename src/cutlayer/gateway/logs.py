"""One JSON object per request on standard error: what was asked of which endpoint, by which key, with what outcome. No content.

A logger of its own, not structlog's global configuration: programs that embed the gateway have theirs.
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


def request_logger(stream: TextIO | None = None) -> FilteringBoundLogger:
    """A logger that writes JSON lines to `stream`, by default standard error."""
    # These log what they send at DEBUG, and uvicorn whole tracebacks with the messages of exceptions.
    for name in ("sse_starlette", "websockets", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(stream or sys.stderr),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    )
    return logger


def place_of(error: BaseException) -> dict[str, Any]:
    """An exception's type and where it was raised. Not its message, which may quote what it was about."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-6:]]
    return {"error": type(error).__name__, "at": places}
