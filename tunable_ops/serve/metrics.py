"""What /metrics says, in a registry of its own for every service."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service.

    Attributes:
        requests: Answers, by path and status; unknown paths count as "other".
        refused: Answers that are problems, by code.
        seconds: Time from the request's header to its answer, by path.
        stage_seconds: Time of one stage (receive, decode, restore, encode) of a request that succeeded.
        running: Requests that are received, wait or run now.
        batch: Pictures or tiles in a call of a network, by model.
        batch_seconds: Time of a call of a network, by model.
        pixels: Pixels that came out of networks, by model.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Answers", "path", "status")
        self.refused = self._counter("refused", "Answers that are problems", "code")
        self.pixels = self._counter("pixels", "Pixels restored", "model")
        self.seconds = self._histogram("request_seconds", "From the header to the answer", _SECONDS, "path")
        self.stage_seconds = self._histogram("stage_seconds", "Stages of requests that succeeded", _SECONDS, "stage")
        self.batch_seconds = self._histogram("batch_seconds", "Calls of a network", _SECONDS, "model")
        self.batch = self._histogram("batch_size", "Pictures or tiles in a call of a network", _SIZES, "model")
        self.running = Gauge("tunable_ops_running", "Requests received, waiting or running", registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tunable_ops_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tunable_ops_{name}", text, labels, buckets=buckets, registry=self.registry)

    def text(self) -> bytes:
        """Return all values in Prometheus' text format."""
        return generate_latest(self.registry)
