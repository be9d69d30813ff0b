"""Calls to systems of others: how long they take, how they end, and the breakers that keep us from asking.

    client = Client("discord", timeout=10.0)         # an httpx.AsyncClient whose requests are measured
    with calling("stripe") as call: ...              # anything else; `call.status` says what came back

`api` is a name of ours, never an address: each of its values is a time series for ever.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import httpx
from prometheus_client import Counter, Gauge, Histogram

from shared import telemetry

SECONDS: Final = Histogram(
    "openbell_external_request_seconds",
    "From asking another system to its whole answer, or to giving up.",
    ("api",),
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
REQUESTS: Final = Counter(
    "openbell_external_requests_total",
    "Calls of other systems by outcome: ok, refused (4xx: what we asked), failed (5xx, or no answer).",
    ("api", "outcome"),
)
BREAKER_OPEN: Final = Gauge(
    "openbell_breaker_open", "1 while nothing is sent there, for it only failed; half-open counts as open.", ("target",)
)

_REFUSED: Final = 400
_FAILED: Final = 500


@dataclass(slots=True)
class Call:
    """A call in progress; without a status at its end, it was answered."""

    status: int = 200


@contextmanager
def calling(api: str) -> Generator[Call]:
    """Measure a call; one that raises has failed."""
    call, began, outcome = Call(), time.perf_counter(), "failed"
    try:
        with telemetry.working(f"call {api}"):
            yield call
        outcome = "failed" if call.status >= _FAILED else "refused" if call.status >= _REFUSED else "ok"
    finally:
        SECONDS.labels(api).observe(time.perf_counter() - began)
        REQUESTS.labels(api, outcome).inc()


class Client(httpx.AsyncClient):
    """An httpx client of one system."""

    def __init__(self, api: str, **options: Any) -> None:
        super().__init__(**options)
        self._api = api

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """Send a request; see httpx."""
        with calling(self._api) as call:
            answer = await super().send(request, **options)
            call.status = answer.status_code
            return answer


def breaker_moved(target: str, what: str, event: Any) -> None:
    """Show a breaker's state; a listener of purgatory's factories."""
    if what == "circuit_breaker_created":
        BREAKER_OPEN.labels(target).set(0)
    elif what == "state_changed":
        BREAKER_OPEN.labels(target).set(0 if event.state == "closed" else 1)
