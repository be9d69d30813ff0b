"""Rows a second from the outbox to Kafka, in order for each key, against a bare producer of the same records."""

import asyncio
import uuid
from time import perf_counter
from typing import Any, Final

from sqlalchemy import text

from benchmarks.messaging.bank import Bank, Deposited, Noted, now, row, sendable, until
from shared.messaging.ports import Outgoing
from shared.messaging.record import headers_of, pack_headers
from shared.messaging.relay import Relay

ROWS: Final = 60_000
KEYS: Final = 500
PAGE: Final = 2_000
BAR: Final = 10_000
GOAL: Final = 20_000

_FILL: Final = text(
    """
    insert into outbox (topic, key, value, headers)
    select :topic, convert_to('account-' || n % :keys, 'UTF8'),
           convert_to('{"account":"account-' || n % :keys || '","n":' || n || '}', 'UTF8'), :headers
    from generate_series(1, cast(:rows as int)) n
    """
)


async def relayed(bank: Bank) -> float:
    """Return rows a second of the relay, from a full table to an empty one."""
    event = Deposited(id=uuid.uuid4(), time=now(), account="account-1", n=1)
    async with bank.database() as db:
        async with db.transaction() as tx:
            packed = pack_headers(headers_of(event, "/bench"))
            await tx.execute(_FILL, topic=Noted.topic.name, keys=KEYS, rows=ROWS, headers=packed)

        async def left() -> int:
            async with db.read() as tx:
                return await tx.fetchval(text("select count(*) from outbox"))

        async def begun() -> bool:
            return await left() < ROWS

        async def finished() -> bool:
            return await left() == 0

        relaying = asyncio.create_task(Relay("bench", db, bank.address).run())
        await until(begun)
        before, began = await left(), perf_counter()
        await until(finished)
        rate = before / (perf_counter() - began)
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
    return rate


async def produced(bank: Bank) -> float:
    """Return records a second of the relay's producer by itself, with the same pages."""
    event = Deposited(id=uuid.uuid4(), time=now(), account="account-1", n=1)
    headers = sendable(event)
    producer = bank.address.writer("bench")
    await producer.start()
    await producer.partitions_for(Noted.topic.name)
    began = perf_counter()
    for first in range(0, ROWS, PAGE):
        page: list[Outgoing] = [
            (b"account-%d" % (n % KEYS), b'{"account":"account-%d","n":%d}' % (n % KEYS, n), headers)
            for n in range(first, first + PAGE)
        ]
        futures = await producer.send_all(Noted.topic.name, page)
        await asyncio.gather(*futures)
    rate = ROWS / (perf_counter() - began)
    await producer.stop()
    return rate


async def run(bank: Bank) -> list[dict[str, Any]]:
    """Measure three times in turn, take the middle."""
    rates = [(await relayed(bank), await produced(bank)) for _ in range(3)]
    ours, bare = (sorted(column)[1] for column in zip(*rates, strict=True))
    return [row("outbox relay, against a bare producer", ours, "1/s", bare, BAR, GOAL, holds=ours >= BAR)]
