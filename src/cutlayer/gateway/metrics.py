"""Counters for Prometheus. Labels are endpoints and status codes of ours; nothing a user sends is ever a label."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """One gateway's figures, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "cutlayer_gateway_requests", "Requests answered.", ("endpoint", "status"), registry=registry
        )
        self._seconds = Histogram(
            "cutlayer_gateway_request_seconds",
            "From a request's arrival to the end of its answer.",
            ("endpoint",),
            buckets=_SECONDS,
            registry=registry,
        )
        tokens = Counter("cutlayer_gateway_tokens", "Tokens.", ("kind",), registry=registry)
        self.prompt_tokens = tokens.labels("prompt")
        self.answer_tokens = tokens.labels("completion")
        self.released = Counter(
            "cutlayer_gateway_positions_released", "Positions sent to the server.", registry=registry
        )
        self.first_token = Histogram(
            "cutlayer_gateway_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.between_tokens = Histogram(
            "cutlayer_gateway_inter_token_seconds",
            "From one token of an answer to the next.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._in_use = Gauge("cutlayer_gateway_sessions_in_use", "Sessions that generate.", registry=registry)
        self._waiting = Gauge("cutlayer_gateway_queue_length", "Requests that wait for a session.", registry=registry)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def pool(self, in_use: int, waiting: int) -> None:
        """Note what the pool says."""
        self._in_use.set(in_use)
        self._waiting.set(waiting)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
