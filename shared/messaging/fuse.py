"""The fuse: when failures come from many keys, the fault is ours, not the events'. Then the consumer stops.

While the fuse is open, attempts do not count; every `probe_every_s` one event is tried, and its success closes
the fuse. One fuse serves a consumer's live records and its retries.
"""

import asyncio
from collections import deque
from collections.abc import Callable

from shared.messaging import metrics
from shared.messaging.consumer import Policy


class Fuse:
    """Counts outcomes by key; opens after too many failures over distinct keys, in a row or by ratio."""

    def __init__(self, consumer: str, policy: Policy, monotonic: Callable[[], float]) -> None:
        self._consumer = consumer
        self._policy = policy
        self._monotonic = monotonic
        self._in_a_row: set[object] = set()
        self._window: deque[object | None] = deque(maxlen=policy.fuse_window)
        self._next_probe_at = 0.0
        self._closed = asyncio.Event()
        self._closed.set()
        metrics.FUSE_OPEN.labels(consumer).set(0)

    @property
    def is_open(self) -> bool:
        """Whether the consumer stands still."""
        return not self._closed.is_set()

    def succeeded(self, events: int = 1) -> None:
        """Events took effect: the consumer works. Closes the fuse."""
        self._in_a_row.clear()
        self._window.extend([None] * min(events, self._policy.fuse_window))
        if self.is_open:
            self._window.clear()
            self._closed.set()
            metrics.FUSE_OPEN.labels(self._consumer).set(0)

    def failed(self, key: object) -> None:
        """An event failed or was parked. `key` tells distinct causes apart: the key, or the record itself."""
        self._in_a_row.add(key)
        self._window.append(key)
        keys = {failed for failed in self._window if failed is not None}
        failures = sum(failed is not None for failed in self._window)
        many = len(keys) >= self._policy.fuse_keys
        by_ratio = len(self._window) == self._policy.fuse_window and failures > self._policy.fuse_ratio * len(
            self._window
        )
        if not self.is_open and (len(self._in_a_row) >= self._policy.fuse_keys or (many and by_ratio)):
            self._closed.clear()
            self._next_probe_at = self._monotonic() + self._policy.probe_every_s
            metrics.FUSE_OPEN.labels(self._consumer).set(1)

    def take_probe(self) -> bool:
        """Whether the caller may try one event now although the fuse is open; at most one in each interval."""
        now = self._monotonic()
        if not self.is_open or now < self._next_probe_at:
            return False
        self._next_probe_at = now + self._policy.probe_every_s
        return True

    def unspent(self) -> None:
        """Give a probe back: what it found could not tell whether the consumer works."""
        if self.is_open:
            self._next_probe_at = self._monotonic()

    async def wait_closed(self, timeout_s: float) -> None:
        """Return when the fuse closes, or after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._closed.wait()
        except TimeoutError:
            return
