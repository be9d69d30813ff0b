"""What many flights share: statements done for several of them at once, and places taken in order of rank."""

import asyncio
import heapq
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

ROUND_S: Final = 0.002
"""A longer round of the event loop is a slow one; measured, the least at which others were not held up."""
LEAST: Final = 4.0
ALONE_S: Final = 1.0
"""After so long without one who cannot wait, those who can are held back for nobody."""

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Does for many at once what each asks for itself.

    The first to ask waits for nobody; what is asked while `at_once` batches are being done goes with the next one, up
    to `most` in it. `do` returns an answer for each, in their order; an answer that is an exception is raised to its
    asker, and what `do` raises to all of them.
    """

    def __init__(
        self, do: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]], *, most: int, at_once: int = 1
    ) -> None:
        self._do = do
        self._most = most
        self._at_once = at_once
        self._asked: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._batches: set[asyncio.Task[None]] = set()

    async def __call__(self, one: T) -> R:
        """Return the answer for one."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._asked.append((one, answer))
        self._go_on()
        return await answer

    async def close(self) -> None:
        """Cut off what is being done."""
        batches = list(self._batches)
        for batch in batches:
            batch.cancel()
        await asyncio.gather(*batches, return_exceptions=True)

    def _go_on(self) -> None:
        if self._asked and len(self._batches) < self._at_once:
            batch = asyncio.create_task(self._batch())  # it begins after those who ask in this turn of the loop
            self._batches.add(batch)
            batch.add_done_callback(self._ended)

    def _ended(self, batch: asyncio.Task[None]) -> None:
        self._batches.discard(batch)
        self._go_on()

    def _gathered(self) -> list[tuple[T, asyncio.Future[R]]]:
        """Take what goes into one batch; not what nobody waits for any more."""
        gathered: list[tuple[T, asyncio.Future[R]]] = []
        while self._asked and len(gathered) < self._most:
            one, answer = self._asked.popleft()
            if not answer.done():
                gathered.append((one, answer))
        return gathered

    async def _batch(self) -> None:
        if not (asked := self._gathered()):
            return
        try:
            answers = await self._do([one for one, _ in asked])
        except asyncio.CancelledError:
            for _, answer in asked:
                answer.cancel()
            raise
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to those who asked
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), told in zip(asked, answers, strict=True):
            if answer.done():
                continue
            if isinstance(told, Exception):
                answer.set_exception(told)
            else:
                answer.set_result(told)


class Places:
    """So many places; a free one goes to the lowest rank that waits, among equals to whoever came first."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def take(self, rank: int) -> None:
        """Take a place; waits its turn."""
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back()
            raise

    def give_back(self) -> None:
        """Give a place back."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Quiet:
    """Whether nobody who cannot wait has come for `ALONE_S`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._came_at = float("-inf")

    def __call__(self) -> bool:
        """Whether it is quiet now."""
        return self._clock() - self._came_at > ALONE_S

    def came(self) -> None:
        """Take note that one has come."""
        self._came_at = self._clock()


class Patience:
    """How many of those who can wait are served at once: as many as the event loop keeps time with, `most` at most.

    What is slow for want of an answer from outside leaves the loop free, and more are let in; what fills the loop
    makes everybody else wait at each of their steps. While there is nobody else, `most` are served.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = float(most)
        self._least = min(self._most, LEAST)
        self._places = self._least
        self._clock = clock
        self._alone = Quiet(clock)

    @property
    def places(self) -> int:
        """So many at once, for now."""
        return int(self._most if self._alone() else self._places)

    def others(self) -> None:
        """Take note that one has come who cannot wait."""
        self._alone.came()

    async def look(self) -> None:
        """Take one round of the loop: after a slow one a quarter fewer are let in, after others slowly more."""
        began = self._clock()
        await asyncio.sleep(0)
        if self._clock() - began > ROUND_S:
            self._places = max(self._least, self._places * 0.75)
        else:
            self._places = min(self._most, self._places + 1 / self._places)


class Precedence:
    """What others stand back for while it is under way: `most_s` at a time, and at most half of the time."""

    def __init__(self, most_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s = self._left_s = most_s
        self._clock = clock
        self._looked_at = clock()
        self._under_way = 0
        self._holds = False

    def __call__(self) -> bool:
        """Whether others stand back now."""
        now = self._clock()
        passed_s, self._looked_at = now - self._looked_at, now
        self._left_s = min(self._most_s, self._left_s + (-passed_s if self._holds else passed_s))
        self._holds = self._under_way > 0 and self._left_s > 0
        return self._holds

    @contextmanager
    def taken(self) -> Generator[None]:
        """Be under way; several may be."""
        self._under_way += 1
        self()
        try:
            yield
        finally:
            self._under_way -= 1
            self()
