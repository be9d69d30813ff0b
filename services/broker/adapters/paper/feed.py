"""Tells what happens in paper accounts to whoever listens in this process, from the frames in Postgres.

One task reads the new frames of accounts that somebody listens to: an account's at once after a commit of this process,
and all of them every `poll_s`, for those of other replicas. Frames are numbered by account under the account's lock, so
that reading on from a number misses none.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from uuid import UUID

from services.broker.adapters.paper.tables import FRAMES_MOST, PaperTables
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
        self._told: set[UUID] = set()  # accounts of which this process has committed something
        self._reading: asyncio.Task[None] | None = None

    def wake(self, accounts: Collection[UUID]) -> None:
        """Read now what is new of accounts: something was committed."""
        self._told.update(accounts)
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
            await self._read_on()
        except Exception as error:  # noqa: BLE001 - whatever it is, who listens is told
            lost = StreamLost()
            lost.__cause__ = error
            self._lose(lost)

    async def _read_on(self) -> None:
        """Read what this process commits at once, and every `poll_s` whatever there is."""
        loop = asyncio.get_running_loop()
        all_at = 0.0
        while True:
            self._woken.clear()
            told, self._told = self._told, set()
            if loop.time() >= all_at:
                all_at = loop.time() + self._poll_s
                told = {one.account_id for one in self._listeners}
            await self._pass_on([one for one in self._listeners if one.account_id in told])
            with suppress(TimeoutError):
                async with asyncio.timeout_at(all_at):
                    await self._woken.wait()

    async def _pass_on(self, listeners: list[_Listener]) -> None:
        if not listeners:
            return
        async with self._database.read() as tx:
            found = await self._tables.frames(tx, [(one.account_id, one.last) for one in listeners])
        for place, number, order_id, report in found:
            listener = listeners[place]
            if number > listener.last:
                listener.last = number
                listener.queue.put_nowait(Update(order_id, report))
        if len(found) == FRAMES_MOST:
            self.wake({one.account_id for one in listeners})

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
