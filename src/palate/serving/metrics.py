"""What a server counts, for Prometheus: requests, errors by kind, queues, tokens, how full batches are, seconds."""

from __future__ import annotations

from collections.abc import Callable

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0, 4.0, 8.0)  # above 1: a shared prompt counts for every response that has it
SEQUENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """One registry a server, so that several in one process do not add up."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self.registry = CollectorRegistry()
        self.requests = Counter("palate_requests", "Requests by path and status", ["path", "status"], registry=self.registry)
        self.errors = Counter("palate_errors", "Requests refused and items without a reward, by kind", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "palate_request_seconds", "Seconds from the head of a request to its answer", ["path"], buckets=SECONDS, registry=self.registry
        )
        self.items = Counter("palate_items", "Items scored", ["model"], registry=self.registry)
        self.tokens = Counter("palate_tokens", "Tokens of items scored (a shared prompt counts for every response)", ["model"], registry=self.registry)
        self.truncated = Counter("palate_truncated_items", "Items that lost tokens", ["model"], registry=self.registry)
        self.batch_fill = Histogram("palate_batch_fill", "Tokens of a computed batch over the token budget", ["model"], buckets=FILL, registry=self.registry)
        self.batch_sequences = Histogram("palate_batch_sequences", "Sequences of a computed batch", ["model"], buckets=SEQUENCES, registry=self.registry)
        self.queue_items = Gauge("palate_queue_items", "Items that wait or are computed", ["model"], registry=self.registry)
        self.queue_tokens = Gauge("palate_queue_tokens", "Tokens of encoded items that wait or are computed", ["model"], registry=self.registry)

    def watch_queue(self, model: str, items: Callable[[], int], tokens: Callable[[], int]) -> None:
        self.queue_items.labels(model).set_function(items)
        self.queue_tokens.labels(model).set_function(tokens)

    def page(self) -> bytes:
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
