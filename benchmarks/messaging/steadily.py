"""Deposits at a steady rate, in a process of its own: python -m benchmarks.messaging.steadily BOOTSTRAP TOPIC."""

import asyncio
import sys
import uuid
from time import perf_counter
from typing import Final

from aiokafka import AIOKafkaProducer

from benchmarks.messaging.bank import Deposited, now, sendable

RATE: Final = 1_000
EVENTS: Final = 20_000
KEYS: Final = 500


async def produce(bootstrap: str, topic: str) -> None:
    """Send all events, each with the time at which it is handed over."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    began = perf_counter()
    for n in range(EVENTS):
        if (ahead := began + n / RATE - perf_counter()) > 0:
            await asyncio.sleep(ahead)
        event = Deposited(id=uuid.uuid4(), time=now(), account=f"account-{n % KEYS}", n=n)
        await producer.send(topic, event.to_bytes(), event.key.encode(), headers=sendable(event))
    await producer.stop()


if __name__ == "__main__":
    asyncio.run(produce(*sys.argv[1:]))
