"""Structured logs: one JSON object per line on stderr, events and counts only, never tensor content."""

from __future__ import annotations

import logging
import sys

import structlog


def log_json() -> None:
    """Send the server's events to stderr as JSON lines."""
    # websockets logs every handshake and, at DEBUG, message content
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
