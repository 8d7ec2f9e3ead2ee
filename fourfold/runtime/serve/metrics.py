"""Counters of the server in the exposition format of Prometheus, and structured log lines."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

from fourfold.errors import MissingExtra

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServingLog:
    """A JSON object a line on stderr: "time", "event" and what belongs to it. Never what a user wrote."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self._lock = threading.Lock()

    def __call__(self, event: str, /, **facts: object) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        line = json.dumps({"time": stamp, "event": event, **facts}, ensure_ascii=False, default=str)
        try:
            with self._lock:
                self.stream.write(line + "\n")
                self.stream.flush()
        except (OSError, ValueError):                                  # nobody reads the log: serving goes on
            pass


class ServingMetrics:
    """The server's counters in a registry of their own. Raises MissingExtra without prometheus_client."""

    def __init__(self, log: ServingLog, log_requests: bool = False) -> None:
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
        except ImportError as error:
            raise MissingExtra("Serving needs the package prometheus_client.", "pip install 'fourfold[serve]'") from error
        self.log, self.log_requests = log, log_requests
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter("fourfold_requests", "Requests by route and status.", ["route", "status"], registry=r)
        self.seconds = Histogram("fourfold_request_seconds", "Seconds from a request's body to its answer.", ["route"], buckets=_SECONDS, registry=r)
        self.rows = Counter("fourfold_rows", "Rows answered, by who answered: a member of the cascade or the cache.", ["by"], registry=r)
        self.batch_rows = Histogram("fourfold_batch_rows", "Rows of a batch.", ["member"], buckets=_ROWS, registry=r)
        self.batch_seconds = Histogram("fourfold_batch_seconds", "Seconds of a batch in its worker.", ["member"], buckets=_SECONDS, registry=r)
        self.waited = Histogram("fourfold_wait_seconds", "Seconds that a batch's oldest row waited for it.", buckets=_SECONDS, registry=r)
        self.batch_cpu = Counter("fourfold_batch_cpu_seconds", "CPU seconds of batches.", ["member"], registry=r)
        self.deaths = Counter("fourfold_worker_deaths", "Workers that ended unasked.", registry=r)
        self.swaps = Counter("fourfold_swaps", "Changes of artefact, by outcome.", ["outcome"], registry=r)
        self._gauge = Gauge
        self._by_route: dict[tuple[str, int], Counter] = {}

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks."""
        self._gauge(f"fourfold_{name}", help, registry=self.registry).set_function(value)

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request has been answered."""
        known = self._by_route.get((route, status))
        if known is None:
            known = self._by_route[route, status] = self.requests.labels(route, str(status))
        known.inc()
        self.seconds.labels(route).observe(seconds)
        if self.log_requests or status >= 500:
            self.log("request", route=route, status=status, ms=round(1e3 * seconds, 3))

    def batch(self, stage: int, rows: int, seconds: float, cpu: float, waited: float) -> None:
        """A batch has been answered."""
        member = str(stage)
        self.batch_rows.labels(member).observe(rows)
        self.batch_seconds.labels(member).observe(seconds)
        self.batch_cpu.labels(member).inc(max(0.0, cpu))
        self.waited.observe(max(0.0, waited))

    def worker(self, event: str, number: int, pid: int, why: str) -> None:
        """A worker began or ended."""
        if event == "worker_died":
            self.deaths.inc()
        self.log(event, worker=number, pid=pid, **({"why": why} if why else {}))

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
