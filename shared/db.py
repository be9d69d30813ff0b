"""Postgres: a fair pool, transactions, and SQLAlchemy statements executed by asyncpg directly.

A store writes its queries as SQLAlchemy Core statements or `text("... :name ...")`; `Tx` compiles each once
for asyncpg and runs it without SQLAlchemy's execution layer (docs/adr/0005 has the figures). Rows are
asyncpg Records: `row["column"]`. A cast in `text` reads `cast(:name as jsonb)`; jsonb is a Python value.

What would surprise you: nobody commits. `Database.transaction()` does, once, at its end; the doors in
shared.messaging are its only callers in product code. asyncpg's own pool starves waiters under load, so
the pool here hands a freed connection to the one who waited longest.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import asyncpg
import orjson
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.sql.expression import Executable

from shared.errors import Transient

Row = asyncpg.Record
if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic for the type checker only

_DIALECT = PGDialect_asyncpg()
_compiled: WeakKeyDictionary[Executable, tuple[str, tuple[str, ...], Mapping[str, Any]]] = WeakKeyDictionary()


class DatabaseUnavailable(Transient):
    """The database does not answer."""

    code = "DATABASE_UNAVAILABLE"


_RERUN = (
    DatabaseUnavailable,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.StatementCompletionUnknownError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # a primary that has just become a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,
)


# asyncpg says InternalClientError when a connection died in the middle of its own bookkeeping.
_LOST = (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
_NO_ENTRY = (asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError)


ANSWER_S = 40.0
"""A statement without an answer for so long is given up: its connection may have fallen silent, as behind a load
balancer. Longer than a lane's deadline, which tells a slow handler from a slow Postgres."""


def is_rerun(error: BaseException) -> bool:
    """Whether the same transaction may well work when it runs again: the data did nothing wrong."""
    return isinstance(error, _RERUN)


def compile_statement(statement: Executable) -> tuple[str, tuple[str, ...], Mapping[str, Any]]:
    """Return (SQL with $1.., parameter names in order, values the statement already carries)."""
    known = _compiled.get(statement)
    if known is None:
        compiled: Any = statement.compile(dialect=_DIALECT)  # pyright: ignore[reportAttributeAccessIssue]
        known = (str(compiled), tuple(compiled.positiontup or ()), dict(compiled.params))
        _compiled[statement] = known
    return known


class Tx:
    """A transaction in progress. Services and stores read and write through it and never end it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._used = False  # since the savepoint
        self._stepped = False  # since the step began
        self._after_commit: list[Callable[[], None]] = []
        self._marked: int | None = None  # how many callbacks there were at the savepoint
        self._step = 0  # and when the step began

    @property
    def connection(self) -> Connection:
        """The connection itself, for what the methods here cannot do."""
        self._used = self._stepped = True
        return self._connection

    def after_commit(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the commit is known; never when the transaction fails."""
        self._after_commit.append(callback)

    def committed(self) -> None:
        """Run the callbacks."""
        for callback in self._after_commit:
            callback()

    async def savepoint(self) -> None:
        """Mark where `back_to_savepoint` goes back to; the mark before it is forgotten."""
        if self._marked is None:
            await self._connection.execute("savepoint here")
        elif self._used:
            await self._connection.execute("release savepoint here; savepoint here")
        self._marked, self._used = len(self._after_commit), False

    async def back_to_savepoint(self) -> None:
        """Undo everything since `savepoint`, an error that Postgres has raised included. The mark stays."""
        if self._used:
            await self._connection.execute("rollback to savepoint here")
        self._used = False
        del self._after_commit[self._marked :]

    def step(self) -> None:
        """Begin a step, which `forget_step` may undo without a word to Postgres."""
        self._step, self._stepped = len(self._after_commit), False

    def forget_step(self) -> bool:
        """Undo the step if it has sent nothing; tell whether it had not."""
        if not self._stepped:
            del self._after_commit[self._step :]
        return not self._stepped

    async def fetch(self, statement: Executable, /, **params: Any) -> list[Row]:
        """Return all rows."""
        sql, args = _bind(statement, params)
        with _answering(self.connection):
            return await self.connection.fetch(sql, *args)

    async def fetchrow(self, statement: Executable, /, **params: Any) -> Row | None:
        """Return the first row, or None."""
        sql, args = _bind(statement, params)
        with _answering(self.connection):
            return await self.connection.fetchrow(sql, *args)

    async def fetchval(self, statement: Executable, /, **params: Any) -> Any:
        """Return the first column of the first row, or None."""
        sql, args = _bind(statement, params)
        with _answering(self.connection):
            return await self.connection.fetchval(sql, *args)

    async def execute(self, statement: Executable, /, **params: Any) -> int:
        """Run the statement; return how many rows it touched."""
        sql, args = _bind(statement, params)
        with _answering(self.connection):
            status = await self.connection.execute(sql, *args)
        count = status.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    async def execute_many(self, statement: Executable, rows: Iterable[Mapping[str, Any]]) -> None:
        """Run the statement once for each row, pipelined."""
        sql, names, defaults = compile_statement(statement)
        with _answering(self.connection):
            await self.connection.executemany(sql, [[{**defaults, **row}[name] for name in names] for row in rows])


@contextmanager
def _answering(connection: Connection) -> Generator[None]:
    """Turn a statement's time-out into a lost connection. A deadline of the caller comes as a cancellation."""
    try:
        yield
    except TimeoutError as error:
        connection.terminate()
        raise DatabaseUnavailable("a statement was not answered") from error


def _bind(statement: Executable, params: Mapping[str, Any]) -> tuple[str, list[Any]]:
    sql, names, defaults = compile_statement(statement)
    if len(params) == len(names):
        with contextlib.suppress(KeyError):
            return sql, [params[name] for name in names]
    unknown = params.keys() - set(names)
    if unknown:
        raise TypeError(f"the statement has no parameter {sorted(unknown)}; it has {sorted(set(names))}")
    missing = [name for name in names if name not in params and defaults.get(name) is None]
    if missing:
        raise TypeError(f"the statement needs a value for {sorted(set(missing))}")
    return sql, [params[name] if name in params else defaults[name] for name in names]


class Pool:
    """Connections handed out first come, first served.

    A connection returns to the longest waiter, not to whoever asks next. `size` bounds open connections.
    """

    def __init__(self, connect: Callable[[], Any], size: int) -> None:
        self._connect = connect
        self.size = size
        self._idle: list[Connection] = []
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._open = 0
        self._closed = False

    @property
    def in_use(self) -> int:
        """Connections that are out."""
        return self._open - len(self._idle)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiters)

    async def acquire(self) -> Connection:
        """Return a connection; waits its turn."""
        if self._closed:
            raise DatabaseUnavailable("the pool is closed")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
            self._open -= 1
        if self._open >= self.size:
            waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                handed = await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._pass_on(waiter.result())
                raise
            if handed is not None:
                return handed
        else:
            self._open += 1
        try:
            return await self._connect()
        except BaseException:
            self._pass_on(None)
            raise

    def release(self, connection: Connection) -> None:
        """Give a connection back; a closed one is replaced when needed."""
        if connection.is_closed():
            self._pass_on(None)
        elif self._closed:
            self._open -= 1
            connection.terminate()
        else:
            self._pass_on(connection)

    def _pass_on(self, connection: Connection | None) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._open -= 1
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """Close the idle connections now and each other one as it returns."""
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            self._open -= 1
            with contextlib.suppress(Exception):
                await connection.close(timeout=5)
        while self._waiters:
            if not (waiter := self._waiters.popleft()).done():
                waiter.set_exception(DatabaseUnavailable("the pool is closed"))


class Database:
    """One service's schema in the database, through one role and one pool."""

    def __init__(self, url: str, *, schema: str, size: int = 12) -> None:
        self.url = url.replace("postgresql+asyncpg://", "postgresql://")
        self.schema = schema
        self.pool = Pool(self.connect, size)
        self.half = asyncio.Semaphore(max(1, size // 2))  # of the pool: for what may wait long with a connection

    async def connect(self) -> Connection:
        """Open a connection of its own, outside the pool (for LISTEN and session locks)."""
        try:
            connection: Connection = await asyncpg.connect(
                self.url,
                timeout=10,
                command_timeout=ANSWER_S,
                statement_cache_size=512,
                server_settings={
                    "search_path": self.schema,
                    "application_name": f"openbell-{self.schema}",
                    # Short statements over partitions: planning anew cost a third of Postgres's time, compiling more.
                    "plan_cache_mode": "force_generic_plan",
                    # A plan is kept while its table grows: one that seemed small must not be read wholly for each row.
                    "random_page_cost": "1.1",
                    "jit": "off",
                },
            )
        except (OSError, TimeoutError, asyncpg.InterfaceError, *_NO_ENTRY) as error:
            raise DatabaseUnavailable(f"cannot reach Postgres: {type(error).__name__}") from error
        try:
            await connection.set_type_codec(
                "jsonb", schema="pg_catalog", encoder=_to_json, decoder=orjson.loads, format="text"
            )
        except _LOST as error:
            connection.terminate()
            raise DatabaseUnavailable("the connection was lost at once") from error
        except BaseException:
            connection.terminate()
            raise
        return connection

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Tx]:
        """Begin; commit at the end of the block, or roll back when it raises.

        Raises DatabaseUnavailable when no connection can be had; whatever Postgres says otherwise.
        """
        async with self._connection() as connection:
            try:
                await connection.execute("begin")
            except _LOST as error:
                connection.terminate()
                raise DatabaseUnavailable("the connection was lost") from error
            tx = Tx(connection)
            try:
                yield tx
            except _LOST as error:
                if connection.is_closed() or isinstance(error, asyncpg.InternalClientError):
                    connection.terminate()
                    raise DatabaseUnavailable("the connection was lost") from error
                await _roll_back(connection)
                raise
            except BaseException:
                await _roll_back(connection)
                raise
            try:
                await connection.execute("commit")
            except Exception as error:
                connection.terminate()  # the outcome is unknown: never reuse this connection
                if isinstance(error, _LOST):
                    raise DatabaseUnavailable("the connection was lost while committing") from error
                raise
        tx.committed()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Tx]:
        """Read, one statement at a time, without a transaction around them."""
        async with self._connection() as connection:
            try:
                yield Tx(connection)
            except _LOST as error:
                if connection.is_closed() or isinstance(error, asyncpg.InternalClientError):
                    connection.terminate()
                    raise DatabaseUnavailable("the connection was lost") from error
                raise

    async def answers(self, within_s: float = 3.0) -> bool:
        """Whether Postgres answers the simplest question in time, asked outside the pool, which may be all in use."""
        try:
            async with asyncio.timeout(within_s):
                connection = await self.connect()
                try:
                    await connection.execute("select 1")
                finally:
                    connection.terminate()
        except (*_RERUN, *_LOST, asyncpg.PostgresError):
            return False
        return True

    @asynccontextmanager
    async def _connection(self) -> AsyncGenerator[Connection]:
        connection = await self.pool.acquire()
        try:
            yield connection
        except asyncio.CancelledError:
            connection.terminate()  # a statement may still be running on it
            raise
        finally:
            self.pool.release(connection)

    async def close(self) -> None:
        """Close the pool."""
        await self.pool.close()


async def _roll_back(connection: Connection) -> None:
    if connection.is_closed():
        return
    try:
        async with asyncio.timeout(5):
            await connection.execute("rollback")
    except Exception:  # noqa: BLE001 - whatever it is, the connection is not to be trusted
        connection.terminate()


def _to_json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()
