"""What Prometheus reads at /metrics. Owns the names; a counter on the way of a refresh is bound once."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

from tokenctl.errors import InvalidToken, TokenctlError, TokenRefused

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """One registry; nothing in it names a user, an address or a token."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Histogram(
            "tokenctl_request_seconds",
            "Time to answer, by route and status.",
            ["route", "status"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rotations = self._counter(
            "rotations", "Refreshes by result: rotated, retried, refused.", "result"
        )
        self._refusals = self._counter("refusals", "Refused refreshes by reason; reuse is one.", "reason")
        self._logins = self._counter("logins", "Logins by result: ok, failed, throttled.", "result")
        self._revocations = self._counter("revocations", "Logins that were revoked over HTTP.")
        self._batches = Histogram(
            "tokenctl_rotation_batch_size",
            "Rotations in one transaction.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=self._registry,
        )
        self._waiting = Gauge(
            "tokenctl_waiting_calls", "Calls that wait for a thread.", ["pool"], registry=self._registry
        )
        self._purged_rows = self._counter("purged_rows", "Rows that this server's own purge deleted.")
        self._purges = self._counter(
            "purges", "This server's own purges by result: done, stopped, locked, failed.", "result"
        )
        self._last_purge: Gauge | None = None
        self.observe_batch = self._batches.observe
        self._request = lru_cache(maxsize=1024)(
            lambda route, status: self._requests.labels(route, str(status)).observe
        )
        self._rotated = self._rotations.labels("rotated").inc
        self._retried = self._rotations.labels("retried").inc
        self._refused = self._rotations.labels("refused").inc
        for reason in ("reuse", "invalid", "forged"):
            self._refusals.labels(reason)
        for result in ("ok", "failed", "throttled"):
            self._logins.labels(result)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._request(route, status)(seconds)

    def rotated(self, *, retried: bool) -> None:
        (self._retried if retried else self._rotated)()

    def refused(self, error: TokenctlError) -> None:
        """Count a refresh that was refused; what is no refusal (the database is away) is not counted."""
        if isinstance(error, TokenRefused):
            reason = error.reason
        elif isinstance(error, InvalidToken):
            reason = error.code.removeprefix("token.")
        else:
            return
        self._refused()
        self._refusals.labels(reason).inc()

    def login(self, result: str) -> None:
        self._logins.labels(result).inc()

    def revoked(self, count: int) -> None:
        self._revocations.inc(count)

    def purged(self, result: str, *, rows: int = 0, at: float | None = None) -> None:
        """Count a purge of this server; `at` (s since the epoch) when it was a success."""
        self._purges.labels(result).inc()
        self._purged_rows.inc(rows)
        if at is None:
            return
        if self._last_purge is None:
            # Not before the first one: a gauge of 0 would be a success of 1970, and an alarm.
            self._last_purge = Gauge(
                "tokenctl_purge_last_success_timestamp_seconds",
                "When a purge last ended well.",
                registry=self._registry,
            )
        self._last_purge.set(at)

    def watch(self, pool: str, held: Callable[[], int]) -> None:
        """Show how many calls a pool of threads holds."""
        self._waiting.labels(pool).set_function(held)

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tokenctl_{name}", text, labels, registry=self._registry)
