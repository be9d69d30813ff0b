"""An event loop on a virtual clock that runs several "processes", and can stop one between any two awaits.

A process is a tag in the context (`PROCESS`), which tasks and timers inherit. Within a process callbacks run in the
order in which asyncio would run them. Between processes, and between those and the world outside (answers of Postgres
and Kafka), a seeded random chooses. When nothing can run, the clock jumps to the next timer.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from random import Random
from typing import Any, Final

STEP_S: Final = 0.00002
"""What a callback costs in virtual time, so that a busy loop does not stop the clock."""


class Process:
    """A set of tasks that live and die together. The world itself is one that never dies."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue: deque[asyncio.Handle] = deque()
        self.tasks: list[asyncio.Task[Any]] = []  # kept, or the collector would run what a killed process never runs
        self.steps = 0
        self.dead = False
        self.frozen = False
        self.crash_at: int | None = None
        self.on_death: list[Callable[[], None]] = []

    def kill(self) -> None:
        """Let nothing of it run any more."""
        if not self.dead:
            self.dead = True
            for callback in self.on_death:
                callback()


PROCESS: ContextVar[Process] = ContextVar("process")


class Stalled(Exception):
    """Nothing can ever run again, or too much has run."""


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. `world` is the process of everything that is not under test."""

    def __init__(self, random: Random, most_steps: int = 400_000) -> None:
        super().__init__()
        self.world = Process("world")
        self._processes = [self.world]
        self._random = random
        self._virtual_s = 0.0
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = 0
        self._left = most_steps
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._virtual_s

    def spawn(self, process: Process, main: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine as a process."""
        if process not in self._processes:
            self._processes.append(process)
        context = copy_context()
        context.run(PROCESS.set, process)
        return self.create_task(main, context=context)

    def forget(self, process: Process) -> None:
        """Leave a process out whose tasks have all ended."""
        self._processes.remove(process)

    def _make_task(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(coro, loop=loop, **options)
        context = options.get("context")
        process = (context.get(PROCESS) if context is not None else PROCESS.get(None)) or self.world
        process.tasks.append(task)
        return task

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._order += 1
        heapq.heappush(self._timers, (when, self._order, timer))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        del handle  # it is passed over when its time comes

    def _enqueue(self, handle: asyncio.Handle) -> None:
        handle._context.get(PROCESS, self.world).queue.append(handle)  # type: ignore[attr-defined]

    def _write_to_self(self) -> None:
        """No thread waits in a selector."""

    def _run_once(self) -> None:
        while self._timers and self._timers[0][0] <= self._virtual_s:
            timer = heapq.heappop(self._timers)[2]
            if not timer.cancelled():
                self._enqueue(timer)
        ready = [one for one in self._processes if one.queue and not one.frozen and not one.dead]
        if not ready:
            self._jump()
            return
        process = ready[0] if len(ready) == 1 else self._random.choice(ready)
        handle = process.queue.popleft()
        if handle.cancelled():
            return
        self._virtual_s += STEP_S
        self._left -= 1
        if self._left < 0:
            raise Stalled("the run takes too many steps")
        if process.steps == process.crash_at:
            process.queue.appendleft(handle)
            process.kill()
            return
        process.steps += 1
        handle._run()  # type: ignore[attr-defined]

    def _jump(self) -> None:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        if not self._timers:
            raise Stalled("nothing can run any more")
        self._virtual_s = max(self._virtual_s, self._timers[0][0])

    def bury(self, process: Process) -> None:
        """End the tasks of a killed process, after the run: now their `finally` blocks do no harm."""
        process.dead, process.frozen, process.crash_at = False, False, None
        if process not in self._processes:
            self._processes.append(process)
        self._left = 100_000
        while left := [task for task in process.tasks if not task.done()]:
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.wait(left, timeout=1000))
        for task in process.tasks:
            if not task.cancelled():
                task.exception()  # nobody else asks for it
        self.forget(process)
