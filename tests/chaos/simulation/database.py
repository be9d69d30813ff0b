"""Real Postgres under a virtual clock: each statement is executed for real, one at a time, when the run says so.

A statement travels, is executed, and its answer travels; between these the process may die. Statements run on a loop
of their own that turns only while one of them is executed. One that waits for a lock is known by pg_locks: it stays in
flight, and whoever ends its wait completes it. What the server does by the wall clock (lock_timeout, the time-outs of
idle transactions and sessions) is done here by the virtual one.
"""

import asyncio
import contextlib
import contextvars
from asyncio import events
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from time import monotonic
from typing import Any, Final, TypeVar

import asyncpg

from shared.db import Connection, Database, DatabaseUnavailable
from tests.chaos.simulation.loop import PROCESS, Process, VirtualLoop

T = TypeVar("T")

LOCK_TIMEOUT_S: Final = 2.0
STANDS_STILL_S: Final = 6.0
"""Time-outs of the roles and of the relay's session, all of them a fifth of shared.migrate's: runs are shorter so."""
_RESET: Final = "rollback; select pg_advisory_unlock_all(); reset all"
_WAITS: Final = "select exists(select from pg_locks where pid = $1 and not granted)"


class Server:
    """Postgres, and the loop that talks to it. One serves many runs."""

    def __init__(self, url: str, schema: str) -> None:
        self.url = url
        self.runs = 0
        self._loop = asyncio.SelectorEventLoop()
        self._idle: list[Connection] = []
        self._real = Database(url, schema=schema)
        self.monitor: Connection = self.run(self._real.connect())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the server's loop, from within another loop or none."""
        task = self._loop.create_task(work)
        while not task.done():
            self._turn()
        return task.result()

    def _turn(self, most_s: float | None = None) -> None:
        """Wait for one answer of Postgres at most so long, and take it. Cheaper than run_until_complete by half."""
        outer = events._get_running_loop()
        events._set_running_loop(self._loop)
        timer = None if most_s is None else self._loop.call_later(most_s, lambda: None)
        try:
            self._loop._run_once()  # type: ignore[attr-defined]
        finally:
            if timer is not None:
                timer.cancel()
            events._set_running_loop(outer)

    def take(self) -> Connection:
        """Return a connection as one that was just opened is."""
        return self._idle.pop() if self._idle else self.run(self._real.connect())

    def give_back(self, raw: Connection) -> None:
        """Undo what the connection did and did not end, as the server does when a client is gone."""
        self.run(raw.execute(_RESET))  # type: ignore[arg-type]
        self._idle.append(raw)

    def begin(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Start a statement."""
        return self._loop.create_task(work)

    def settle(self, task: "asyncio.Task[Any]", pid: int) -> bool:
        """Turn until the statement is done (True) or waits for a lock (False)."""
        deadline = monotonic() + 0.002
        while not task.done():
            self._turn(0.002)
            if not task.done() and monotonic() > deadline:
                if self.run(self.monitor.fetchval(_WAITS, pid)):  # type: ignore[arg-type]
                    return False
                deadline = monotonic() + 0.002
        return True

    def cancel(self, task: "asyncio.Task[Any]", pid: int) -> None:
        """End a statement that waits, as its client's cancel request does."""

        async def end() -> None:
            while not task.done():
                await self.monitor.fetchval("select pg_cancel_backend($1)", pid)
                await asyncio.wait((task,), timeout=0.05)

        self.run(end())
        task.cancelled() or task.exception()

    def close(self) -> None:
        """Close every connection."""
        for one in (*self._idle, self.monitor):
            self.run(one.close())
        self._loop.close()


@dataclass(eq=False)
class Op:
    """A statement on its way."""

    connection: "SimConnection"
    what: str
    call: Callable[[Connection], Coroutine[Any, Any, Any]]
    answer: "asyncio.Future[Any]"
    task: "asyncio.Task[Any] | None" = None
    sent: bool = False
    abandoned: bool = False


@dataclass
class Weather:
    """How rough it is: chances for each statement, and how long things travel."""

    slow: float = 0.0  # a statement or an answer takes up to `slowest_s`
    slowest_s: float = 0.02
    lost: float = 0.0  # the connection ends before or after a statement


@dataclass(eq=False)
class Postgres:
    """The server as the simulated processes see it."""

    server: Server
    loop: VirtualLoop
    random: Random
    weather: Weather
    note: Callable[[Process, str], None]
    up: bool = True
    connections: "list[SimConnection]" = field(default_factory=list["SimConnection"])
    blocked: list[Op] = field(default_factory=list[Op])
    listeners: "dict[str, list[SimConnection]]" = field(default_factory=dict[str, list["SimConnection"]])

    def delay_s(self) -> float:
        if self.random.random() < self.weather.slow:
            return self.random.uniform(0, self.weather.slowest_s)
        return 0.0003 * self.random.random()

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Call back as the world, whoever asks."""
        context = contextvars_of(self.loop.world)
        self.loop.call_later(delay_s, callback, *args, context=context)

    def execute(self, op: Op) -> None:
        """The statement has arrived: execute it."""
        connection = op.connection
        if connection.raw is None or op.abandoned:
            return
        op.sent = True
        lost = self.random.random() < self.weather.lost
        if lost and self.random.random() < 0.5:  # it never arrived
            self.note(connection.process, f"lost before: {op.what}")
            connection.break_off()
            return
        self.note(connection.process, op.what)
        op.task = self.server.begin(op.call(connection.raw))
        if not self.server.settle(op.task, connection.pid):
            self.note(connection.process, f"waits: {op.what}")
            self.blocked.append(op)
            self.later(LOCK_TIMEOUT_S, self._too_long, op)
            return
        if lost:
            self.note(connection.process, f"lost after: {op.what}")
            connection.break_off()
        else:
            self._answer(op)
        self.unblock()

    def unblock(self) -> None:
        """Complete what waited for a lock that is free now."""
        for op in tuple(self.blocked):
            if op in self.blocked and op.task is not None and self.server.settle(op.task, op.connection.pid):
                self.blocked.remove(op)
                self.note(op.connection.process, f"waited: {op.what}")
                self._answer(op)
                if op.connection.gone:
                    op.connection.reset()

    def _too_long(self, op: Op) -> None:
        if op in self.blocked and op.task is not None:
            self.blocked.remove(op)
            self.server.cancel(op.task, op.connection.pid)
            self.note(op.connection.process, f"lock time-out: {op.what}")
            self.later(self.delay_s(), _end, op.answer, None, asyncpg.LockNotAvailableError("lock timeout"))
            if op.connection.gone:
                op.connection.reset()
            self.unblock()

    def _answer(self, op: Op) -> None:
        if op.task is None:
            return
        error = op.task.exception()
        result = None if error else op.task.result()
        self.later(self.delay_s(), _end, op.answer, result, error)

    def restart(self) -> None:
        """Lose every connection."""
        for one in tuple(self.connections):
            one.break_off()

    def notify(self, channel: str) -> None:
        """Tell who listens."""
        for one in self.listeners.get(channel, ()):
            self.later(self.delay_s(), one.notified, channel)


class SimConnection:
    """What shared.db and the relay ask of an asyncpg connection."""

    def __init__(self, postgres: Postgres, process: Process) -> None:
        self._postgres = postgres
        self.process = process
        self.raw: Connection | None = postgres.server.take()
        self.pid: int = self.raw.get_server_pid()
        self.gone = False
        self.relay = False  # its session has a time-out of its own
        self._op: Op | None = None
        self._listener: Callable[..., None] | None = None
        postgres.connections.append(self)

    async def fetch(self, sql: str, *args: Any) -> Any:
        return await self._run(sql, lambda raw: raw.fetch(sql, *args))

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        return await self._run(sql, lambda raw: raw.fetchrow(sql, *args))

    async def fetchval(self, sql: str, *args: Any) -> Any:
        return await self._run(sql, lambda raw: raw.fetchval(sql, *args))

    async def executemany(self, sql: str, rows: Any) -> None:
        await self._run(sql, lambda raw: raw.executemany(sql, rows))

    async def execute(self, sql: str, *args: Any) -> Any:
        if sql.startswith("notify "):
            await self._run("notify", lambda raw: raw.execute("select 1"))
            self._postgres.notify(sql.removeprefix("notify "))
            return "NOTIFY"
        self.relay = self.relay or "idle_session_timeout" in sql
        return await self._run(sql, lambda raw: raw.execute(sql, *args))

    async def _run(self, sql: str, call: Callable[[Connection], Coroutine[Any, Any, Any]]) -> Any:
        if self.raw is None or self.gone:
            raise asyncpg.InterfaceError("connection is closed")
        if self._op is not None and not self._op.answer.done():
            raise asyncpg.InterfaceError("cannot perform operation: another operation is in progress")
        what = " ".join(sql.split())[:70]
        op = self._op = Op(self, what, call, asyncio.get_running_loop().create_future())
        self._postgres.later(self._postgres.delay_s(), self._postgres.execute, op)
        try:
            return await op.answer
        except asyncio.CancelledError:
            self._abandon(op)
            raise

    def _abandon(self, op: Op) -> None:
        """Its caller was cancelled: asyncpg asks the server to cancel it."""
        op.abandoned = True
        if op in self._postgres.blocked and op.task is not None:
            self._postgres.blocked.remove(op)
            self._postgres.server.cancel(op.task, self.pid)
            self._postgres.unblock()

    def transaction(self) -> Any:
        return self._transaction()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[None]:
        await self.execute("begin")
        try:
            yield
        except BaseException:
            await self.execute("rollback")
            raise
        await self.execute("commit")

    def is_in_transaction(self) -> bool:
        return self.raw is not None and self.raw.is_in_transaction()

    def is_closed(self) -> bool:
        return self.raw is None or self.gone

    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None:
        await self._run("listen", lambda raw: raw.execute("select 1"))
        self._listener = callback
        self._postgres.listeners.setdefault(channel, []).append(self)

    def notified(self, channel: str) -> None:
        if self._listener is not None and not self.gone:
            self._postgres.loop.call_soon(self._listener, self, 0, channel, "", context=contextvars_of(self.process))

    async def close(self, timeout: float = 0) -> None:  # noqa: ASYNC109 - asyncpg's own signature
        self.terminate()

    def terminate(self) -> None:
        """The client closes its side; what is on the way may still be executed."""
        if self.gone:
            return
        self.gone = True
        op = self._op
        if op is not None and op.sent and op in self._postgres.blocked:
            return  # the server sees it when the wait is over
        if op is not None and not op.sent and not op.abandoned and self._postgres.random.random() < 0.5:
            self.gone = False  # it arrives, and the end of the connection after it
            self._postgres.execute(op)
            self.gone = True
            if op in self._postgres.blocked:
                return
        self.reset()

    def break_off(self) -> None:
        """The connection ends from outside: who waits for an answer hears it, who asks later too."""
        if self.raw is None:
            return
        self.gone = True
        op = self._op
        if op is not None and op in self._postgres.blocked and op.task is not None:
            self._postgres.blocked.remove(op)
            self._postgres.server.cancel(op.task, self.pid)
        self.reset()
        if op is not None and not op.answer.done():
            lost = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
            self._postgres.later(self._postgres.delay_s(), _end, op.answer, None, lost)

    def reset(self) -> None:
        """The server has seen the end: it undoes what was not committed and frees the locks."""
        if self.raw is None:
            return
        raw, self.raw = self.raw, None
        self._postgres.connections.remove(self)
        for listening in self._postgres.listeners.values():
            if self in listening:
                listening.remove(self)
        self._postgres.server.give_back(raw)
        self._postgres.unblock()


class SimDatabase(Database):
    """A Database of one simulated process."""

    def __init__(self, postgres: Postgres, schema: str, size: int) -> None:
        super().__init__(postgres.server.url, schema=schema, size=size)
        self._postgres = postgres

    async def connect(self) -> Any:
        process = PROCESS.get(self._postgres.loop.world)
        await asyncio.sleep(self._postgres.delay_s())
        if not self._postgres.up:
            raise DatabaseUnavailable("cannot reach Postgres: ConnectionRefusedError")
        return SimConnection(self._postgres, process)


def contextvars_of(process: Process) -> Any:
    context = contextvars.copy_context()
    context.run(PROCESS.set, process)
    return context


def _end(answer: "asyncio.Future[Any]", result: Any, error: BaseException | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
