"""Tells what happens in paper accounts to whoever listens in this process, from the frames in Postgres.

One task reads the new frames of all accounts that somebody listens to: at once after a commit of this process, and
every `poll_s` for those of other replicas. Frames are numbered by account under the account's lock, so that reading on
from a number misses none.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

from services.broker.adapters.paper.tables import PaperTables
from services.broker.ports import Update
from shared.db import Database
from shared.errors import Transient


@dataclass(slots=True, eq=False)
class _Listener:
    account_id: UUID
    last: int
    queue: asyncio.Queue[Update | Transient] = field(default_factory=asyncio.Queue[Update | Transient])


class StreamLost(Transient):
    """The stream of the paper venue has ended: listen again."""

    code = "STREAM_LOST"


class Feed:
    """The streams of all accounts."""

    def __init__(self, database: Database, tables: PaperTables, poll_s: float) -> None:
        self._database = database
        self._tables = tables
        self._poll_s = poll_s
        self._listeners: list[_Listener] = []
        self._woken = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Read now: something was committed."""
        self._woken.set()

    @asynccontextmanager
    async def listen(self, account_id: UUID) -> AsyncGenerator[AsyncIterator[Update]]:
        """Tell what is committed of an account from now on."""
        async with self._database.read() as tx:
            purse = await self._tables.purse(tx, account_id)
        listener = _Listener(account_id, purse.frames if purse else 0)
        self._listeners.append(listener)
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read(), name="paper-feed")
        try:
            yield _updates(listener)
        finally:
            if listener in self._listeners:
                self._listeners.remove(listener)
            if not self._listeners:
                await self._stop()

    async def close(self) -> None:
        """End all streams."""
        self._lose(StreamLost())
        await self._stop()

    async def _stop(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self) -> None:
        try:
            while True:
                self._woken.clear()
                await self._pass_on()
                try:
                    async with asyncio.timeout(self._poll_s):
                        await self._woken.wait()
                except TimeoutError:
                    continue
        except Exception as error:  # noqa: BLE001 - whatever it is, who listens is told
            lost = StreamLost()
            lost.__cause__ = error
            self._lose(lost)

    async def _pass_on(self) -> None:
        listeners = list(self._listeners)
        async with self._database.read() as tx:
            found = await self._tables.frames(tx, [(one.account_id, one.last) for one in listeners])
        for place, number, order_id, report in found:
            listener = listeners[place]
            if number > listener.last:
                listener.last = number
                listener.queue.put_nowait(Update(order_id, report))
        if found:
            self._woken.set()  # there may be more

    def _lose(self, lost: Transient) -> None:
        for listener in self._listeners:
            listener.queue.put_nowait(lost)
        self._listeners.clear()


async def _updates(listener: _Listener) -> AsyncIterator[Update]:
    while True:
        one = await listener.queue.get()
        if isinstance(one, Transient):
            raise one
        yield one
