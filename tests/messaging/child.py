"""A process of the probe service, to be killed: `child.py relay|consumer URL BOOTSTRAP TOPIC CONSUMER STATIC`."""

import asyncio
import sys
from datetime import UTC, datetime
from random import Random
from time import monotonic
from typing import Any

from shared.contracts.topics import Topic
from shared.db import Database, Tx
from shared.messaging.consumer import Consumer
from shared.messaging.delivery import Delivery
from shared.messaging.fuse import Fuse
from shared.messaging.kafka import KafkaAddress
from shared.messaging.lane import Lanes
from shared.messaging.outbox import Outbox
from shared.messaging.relay import Relay
from tests.messaging.harness import FAST, INSERT, Deposited


async def lead(url: str, address: KafkaAddress) -> None:
    """Lead, say so, and ask to be thought dead after a second of silence."""
    relay = Relay("probe", Database(url, schema="probe", size=2), address)
    relay.frozen_s = 1  # type: ignore[misc]
    relay.poll_s = 0.1  # type: ignore[misc]
    task = asyncio.create_task(relay.run())
    while relay.health()[1] != "leading":  # noqa: ASYNC110 - a process of a test
        await asyncio.sleep(0.01)
    sys.stdout.write("leading\n")
    sys.stdout.flush()
    await task


async def consume(url: str, address: KafkaAddress, topic: str, name: str) -> None:
    """Record effects, slowly enough to be killed in the middle."""
    event = type("Deposited", (Deposited,), {"topic": Topic(topic)})

    async def handle(event: Deposited, tx: Tx) -> list[Any]:
        await tx.execute(INSERT, account=event.account, n=event.n)
        await asyncio.sleep(0.002)
        return []

    consumer = Consumer(name, FAST, max_batch=40)
    consumer.on(event, handle)
    db = Database(url, schema="probe", size=8)
    fuse = Fuse(name, FAST, monotonic)
    clock = lambda: datetime.now(UTC)  # noqa: E731
    lanes = Lanes(consumer, db, Outbox("probe", lambda: None), fuse, clock, Random(1))
    await Delivery(consumer, address, "static", db, lanes, fuse, clock).run()


if __name__ == "__main__":
    what, url, bootstrap, topic, name, static = sys.argv[1:]
    where = KafkaAddress(bootstrap, static_members=static == "True")
    asyncio.run(lead(url, where) if what == "relay" else consume(url, where, topic, name))
