"""What stands before every request to a venue: the account's pace, and a breaker for all accounts of an address.

    guard = Guard("alpaca")                  # an adapter has one for each address
    pace = Pace(per_s=2, burst=60)           # an account has its own
    async with guard.request(pace):
        ...                                  # ask; what is raised is the port's errors

What is stopped here was certainly not sent. A breaker that is open costs an order nothing but time: it is tried again,
and given up after a minute, as always. What would surprise you: that a venue refuses us, or asks us to wait, is an
answer, and no failure; that somebody stopped waiting for it is one.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from purgatory import AsyncCircuitBreakerFactory
from purgatory.domain.model import OpenedState

from shared.clock import Clock, utc_now
from shared.errors import Permanent, Transient
from shared.external import breaker_moved
from shared.pacing import TokenBucket
from shared.work import Busy

FAILURES: Final = 10
"""So many requests that fail in a row, of whichever accounts, open the breaker."""
OPEN_S: Final = 15.0
"""So long nothing is sent then."""
LONGEST_S: Final = 1.0
"""So long a request waits for its turn; one that would wait longer is put off."""


class Pace:
    """At most `per_s` requests a second in the long run, `burst` at once."""

    def __init__(
        self,
        *,
        per_s: float,
        burst: float,
        clock: Clock = utc_now,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bucket = TokenBucket(per_s, burst)
        self._clock = clock
        self._sleep = sleep

    async def turn(self) -> None:
        """Wait for the next request's turn. Raises Busy where that would take too long."""
        wait_s = self._bucket.reserve(self._clock())
        if wait_s > LONGEST_S:
            self._bucket.tokens += 1  # it is not used
            raise Busy("the account asks its venue too often", retry_after_s=wait_s)
        if wait_s:
            await self._sleep(wait_s)


class Guard:
    """One address of a venue. `answers` are errors beside the port's that say that it answered."""

    def __init__(
        self,
        target: str,
        *,
        failures: int = FAILURES,
        open_s: float = OPEN_S,
        answers: Sequence[type[Exception]] = (),
    ) -> None:
        self._target = target
        self._open_s = open_s
        self._breakers = AsyncCircuitBreakerFactory(failures, open_s, exclude=[Permanent, Busy, *answers])
        self._breakers.add_listener(breaker_moved)

    @asynccontextmanager
    async def request(self, pace: Pace | None = None) -> AsyncGenerator[None]:
        """Let a request through. Raises Busy where the account asks too often, Transient while the breaker is open."""
        if pace is not None:
            await pace.turn()
        try:
            async with await self._breakers.get_breaker(self._target):
                yield
        except OpenedState as error:
            left_s = max(error.opened_at + self._open_s - time.time(), 1.0)
            raise Transient(f"{self._target} only failed lately: nothing is sent", retry_after_s=left_s) from None
