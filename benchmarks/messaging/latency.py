"""How soon: from produce to effect at a steady rate, a retry against its due time, from commit to Kafka.

Baselines of the same run: Kafka alone (produce to a bare consumer's getmany), and a bare producer's acknowledgement.
"""

import asyncio
import sys
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import perf_counter
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from prometheus_client import REGISTRY

from benchmarks.messaging.bank import Bank, Deposited, Noted, now, record, row, sendable, until
from benchmarks.messaging.steadily import EVENTS, RATE
from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.db import Tx
from shared.errors import Transient
from shared.messaging.consumer import Policy
from shared.messaging.door import Done, Door
from shared.messaging.outbox import Outbox
from shared.messaging.relay import Relay

WARM: Final = 2_000
RETRIES: Final = 400
COMMITS: Final = 300
BAR_EFFECT_MS: Final = 50.0
BAR_RETRY_MS: Final = 100.0
BAR_COMMIT_MS: Final = 20.0


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which that share lies."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@asynccontextmanager
async def producing(bank: Bank) -> AsyncGenerator[AIOKafkaProducer]:
    """Run a bare producer that waits for all replicas."""
    producer = AIOKafkaProducer(bootstrap_servers=bank.address.bootstrap, acks="all", enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


@asynccontextmanager
async def steadily(bank: Bank, topic: Topic) -> AsyncGenerator[None]:
    """Produce at the rate, from a process of its own: each event's time is when it was handed over."""
    arguments = (bank.address.bootstrap, topic.name)
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.messaging.steadily", *arguments)
    try:
        yield
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def effect_ms(bank: Bank) -> list[float]:
    """Return milliseconds from produce to the commit of the effect, the warm-up apart; the relay runs beside it."""
    took: dict[int, float] = {}

    async def noted(event: Deposited, tx: Tx) -> Sequence[Event]:
        def commit() -> None:
            took[event.n] = (now() - event.time).total_seconds() * 1000

        tx.after_commit(commit)
        return await record(event, tx)

    async def joined() -> bool:
        return len(took) == 1

    async def finished() -> bool:
        return len(took) == 1 + EVENTS

    topic = await bank.topic()
    async with bank.database() as db, bank.consuming(db, topic, noted, relaying=True):
        async with producing(bank) as producer:
            await _send(producer, topic, "account-0", -1)
            await until(joined)
        async with steadily(bank, topic):
            await until(finished)
    return [took[n] for n in range(WARM, EVENTS)]


async def _send(producer: AIOKafkaProducer, topic: Topic, account: str, n: int) -> None:
    event = Deposited(id=uuid.uuid4(), time=now(), account=account, n=n)
    await producer.send(topic.name, event.to_bytes(), event.key.encode(), headers=sendable(event))


async def kafka_ms(bank: Bank) -> list[float]:
    """Return milliseconds from produce to a bare consumer's getmany."""
    topic = await bank.topic()
    took: list[float] = []
    kafka = AIOKafkaConsumer(topic.name, bootstrap_servers=bank.address.bootstrap, auto_offset_reset="earliest")
    await kafka.start()
    async with steadily(bank, topic):
        while len(took) < EVENTS:
            for records in (await kafka.getmany(timeout_ms=1000)).values():
                at = now()
                times = (datetime.fromisoformat(dict(one.headers)["ce_time"].decode()) for one in records)
                took += [(at - time).total_seconds() * 1000 for time in times]
    await kafka.stop()
    return took[WARM:]


async def retry_ms(bank: Bank) -> float:
    """Return the p99 of how late retries ran, in milliseconds: the bound of the histogram's bucket that holds it."""
    met = set[uuid.UUID]()
    done = 0

    async def once_then(event: Deposited, tx: Tx) -> Sequence[Event]:
        nonlocal done
        if event.id not in met:
            met.add(event.id)
            raise Transient("the first time")
        done += 1
        return await record(event, tx)

    async def finished() -> bool:
        return done >= RETRIES

    topic = await bank.topic()
    policy = Policy(delays_s=(0.5, 0.5), fuse_keys=10 * RETRIES, fuse_ratio=1.0)
    async with (
        bank.database() as db,
        producing(bank) as producer,
        bank.consuming(db, topic, once_then, policy=policy) as consumer,
    ):
        for n in range(RETRIES):
            await _send(producer, topic, f"account-{n}", n)
            await asyncio.sleep(0.02)
        await until(finished)
    name, labels = "openbell_retry_delay_error_seconds_bucket", {"consumer": consumer.name}
    bounds = ("0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "5.0", "30.0", "+Inf")
    counts = {bound: REGISTRY.get_sample_value(name, {**labels, "le": bound}) or 0 for bound in bounds}
    return next(float(bound) * 1000 for bound in bounds if counts[bound] >= 0.99 * counts["+Inf"])


async def commit_ms(bank: Bank) -> tuple[list[float], list[float]]:
    """Return milliseconds from a commit to a consumer that has the record; and from a bare send to the same consumer.

    One event at a time, the outbox empty before each.
    """
    kafka = AIOKafkaConsumer(Noted.topic.name, bootstrap_servers=bank.address.bootstrap, auto_offset_reset="latest")
    await kafka.start()
    await kafka.getmany(timeout_ms=500)
    ours: list[float] = []
    bare: list[float] = []
    async with bank.database() as db, producing(bank) as producer:
        relay = Relay("bench", db, bank.address)
        door = Door(db, Outbox("bench", relay.wake))
        leading = asyncio.create_task(relay.run())

        async def led() -> bool:
            return relay.health() == (True, "leading")

        await until(led)
        for n in range(COMMITS):
            event = Noted(id=uuid.uuid4(), time=now(), account=f"account-{n}", n=n)

            async def tell(tx: Tx, event: Noted = event) -> Done[None]:
                del tx
                return Done(None, [event])

            await door.run(tell)
            ours.append(await _arrives(kafka, perf_counter()))
            await asyncio.sleep(0.1)
            began = perf_counter()
            await producer.send_and_wait(Noted.topic.name, event.to_bytes(), event.key.encode())
            bare.append(await _arrives(kafka, began))
            await asyncio.sleep(0.1)
        leading.cancel()
        await asyncio.gather(leading, return_exceptions=True)
    await kafka.stop()
    return ours[20:], bare[20:]


async def _arrives(kafka: AIOKafkaConsumer, began: float) -> float:
    while not await kafka.getmany(timeout_ms=5000):
        pass
    return (perf_counter() - began) * 1000


async def run(bank: Bank) -> list[dict[str, Any]]:
    """Measure; one line for each figure."""
    alone = await kafka_ms(bank)
    ours = await effect_ms(bank)
    retried = await retry_ms(bank)
    commits, sends = await commit_ms(bank)
    return [
        *(
            row(
                f"produce to effect, {name}, {RATE}/s, against Kafka alone",
                (value := percentile(ours, share)),
                "ms",
                percentile(alone, share),
                bar,
                holds=bar is None or value < bar,
            )
            for name, share, bar in (("p50", 0.5, None), ("p99", 0.99, BAR_EFFECT_MS))
        ),
        row("retry later than drawn, p99 (bucket)", retried, "ms", None, BAR_RETRY_MS, holds=retried <= BAR_RETRY_MS),
        *(
            row(
                f"commit to Kafka, empty outbox, {name}, against a bare send",
                (value := percentile(commits, share)),
                "ms",
                percentile(sends, share),
                bar,
                holds=bar is None or value < bar,
            )
            for name, share, bar in (("p50", 0.5, None), ("p99", 0.99, BAR_COMMIT_MS))
        ),
    ]
