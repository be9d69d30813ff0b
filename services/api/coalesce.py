"""Point reads that meet share one query.

What would surprise you: nobody waits for a timer. A key that comes alone is read at the end of its turn of the event
loop; while as many reads are under way as may be, keys gather and go out together as soon as one is back. So batches
grow with the load, by themselves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

UNDER_WAY: Final = 2
MAX_BATCH: Final = 200


class Coalescer(Generic[K, V]):
    """Gathers keys and reads them with one call of `read_many`."""

    def __init__(self, read_many: Callable[[list[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._read_many = read_many
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._reads: set[asyncio.Task[None]] = set()

    async def get(self, key: K) -> V | None:
        """Return the value, or None when there is none; raises what the read raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V | None] = loop.create_future()  # one's own: who leaves cancels nobody else's
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.setdefault(key, []).append(future)
        return await future

    def _send(self) -> None:
        while self._waiting and len(self._reads) < UNDER_WAY:
            keys = list(self._waiting)[:MAX_BATCH]
            batch = {key: self._waiting.pop(key) for key in keys}
            read = asyncio.ensure_future(self._read(batch))
            self._reads.add(read)
            read.add_done_callback(self._back)

    def _back(self, read: asyncio.Task[None]) -> None:
        self._reads.discard(read)
        self._send()

    async def _read(self, batch: dict[K, list[asyncio.Future[V | None]]]) -> None:
        try:
            found = await self._read_many(list(batch))
        except BaseException as error:  # noqa: BLE001 - it belongs to those who wait
            for futures in batch.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
            return
        for key, futures in batch.items():
            value = found.get(key)
            for future in futures:
                if not future.done():
                    future.set_result(value)
