"""Asks the child process for pictures.

It starts with the first chart, and ends after a while without one or with the service. One that hangs or dies is
replaced at the next chart. The child is a plain process at the end of two pipes, not an executor's worker: an executor
cannot end one that hangs, and keeps threads and a process of its own beside it.

Whoever asks waits `timeout_s` at most and then does without; the picture is kept for who asks for the same next. More
charts at once than `burst`, later one in two seconds, are not drawn: then messages matter more than pictures.
"""

import asyncio
import contextlib
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import Counter, Histogram

from services.alerts.adapters.charts import draw
from services.alerts.domain.charts import Chart

_log = logging.getLogger(__name__)

CHARTS: Final = Counter("openbell_alerts_charts_total", "Charts asked for, by what came of it", ["outcome"])
TOOK: Final = Histogram(
    "openbell_alerts_chart_seconds",
    "Drawing one chart in the child",
    buckets=(0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2),
)

PROGRAM: Final = (sys.executable, "-I", str(Path(draw.__file__)))
KEPT: Final = 64
"""Pictures, some 40 kB each."""
START_S: Final = 60.0
"""The first start on a machine looks through its fonts."""
REST_S: Final = 60.0
EACH_S: Final = 2.0


class _Broken(Exception):
    """The child did not do what it is for."""


class Artist:
    """Draws charts in a child process, one at a time."""

    def __init__(
        self,
        *,
        timeout_s: float = 2.0,
        idle_s: float = 300.0,
        burst: int = 10,
        program: tuple[str, ...] = PROGRAM,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._burst = burst
        self._program = program
        self._clock = clock
        self._allowance, self._counted_at = float(burst), clock()
        self._drawing: dict[bytes, asyncio.Task[bytes | None]] = {}
        self._drawn: OrderedDict[bytes, bytes] = OrderedDict()
        self._turn = asyncio.Lock()
        self._child: Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._rests_until = 0.0

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return None if self._child is None else self._child.pid

    async def draw(self, chart: Chart) -> bytes | None:
        """Return the chart as PNG; None when there is no picture now."""
        wanted = msgspec.json.encode(chart)
        if (known := self._drawn.get(wanted)) is not None:
            self._drawn.move_to_end(wanted)
            CHARTS.labels("kept").inc()
            return known
        task = self._drawing.get(wanted)
        if task is None:
            if self._clock() < self._rests_until or not self._allowed():
                CHARTS.labels("skipped").inc()
                return None
            task = asyncio.create_task(self._draw(wanted), name="draw a chart")
            self._drawing[wanted] = task
            task.add_done_callback(lambda _: self._drawing.pop(wanted, None))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.shield(task)
        except TimeoutError:
            CHARTS.labels("late").inc()
            return None

    async def close(self) -> None:
        """End the child, and whatever waits for it."""
        tasks = list(self._drawing.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._end()
        await asyncio.gather(*self._ending)

    def _allowed(self) -> bool:
        now = self._clock()
        self._allowance = min(float(self._burst), self._allowance + (now - self._counted_at) / EACH_S)
        self._counted_at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    async def _draw(self, wanted: bytes) -> bytes | None:
        async with self._turn:
            try:
                child = await self._started()
                began = self._clock()
                async with asyncio.timeout(self._timeout_s):
                    png = await _ask(child, wanted)
            except (_Broken, OSError, EOFError, TimeoutError) as error:
                _log.warning("alerts.chart", extra={"error": str(error) or type(error).__name__})
                CHARTS.labels("failed").inc()
                await self._end()
                return None
            except BaseException:
                await self._end()  # an answer that nobody waits for would be taken for the next one's
                raise
            self._stay()
        TOOK.observe(self._clock() - began)
        CHARTS.labels("drawn").inc()
        self._drawn[wanted] = png
        while len(self._drawn) > KEPT:
            self._drawn.popitem(last=False)
        return png

    async def _started(self) -> Process:
        if self._child is not None and self._child.returncode is None:
            return self._child
        await self._end()
        try:
            self._child = await asyncio.create_subprocess_exec(*self._program, stdin=PIPE, stdout=PIPE)
            async with asyncio.timeout(START_S):
                await _answer(self._child)
        except (_Broken, OSError, EOFError, TimeoutError):
            self._rests_until = self._clock() + REST_S
            raise
        return self._child

    def _stay(self) -> None:
        """Put off the end for want of work."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(self._idle_s, self._retire)

    def _retire(self) -> None:
        if self._turn.locked():
            self._stay()
        elif (child := self._dismiss()) is not None:
            task = asyncio.create_task(_gone(child), name="end the artist")
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def _end(self) -> None:
        if (child := self._dismiss()) is not None:
            await _gone(child)

    def _dismiss(self) -> Process | None:
        if self._idle is not None:
            self._idle.cancel()
        child, self._child, self._idle = self._child, None, None
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        return child


async def _gone(child: Process) -> None:
    await child.wait()


async def _ask(child: Process, wanted: bytes) -> bytes:
    assert child.stdin is not None  # noqa: S101 - it was started with a pipe
    child.stdin.write(len(wanted).to_bytes(4, "big") + wanted)
    await child.stdin.drain()
    return await _answer(child)


async def _answer(child: Process) -> bytes:
    assert child.stdout is not None  # noqa: S101 - it was started with a pipe
    head = await child.stdout.readexactly(5)
    body = await child.stdout.readexactly(int.from_bytes(head[1:], "big"))
    if not head[0]:
        raise _Broken(f"a chart could not be drawn: {body.decode(errors='replace')}")
    return body
