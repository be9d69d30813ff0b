"""Sends messages at a steady rate and remembers what Kafka acknowledged.

Kafka gone, it makes a new producer and sends again whatever was not acknowledged, so a record may lie twice in the log
with one id; it never forgets one. What is in the log, in which order, is read from the log itself afterwards.
"""

import asyncio
import logging
import time
import uuid
from collections import deque
from dataclasses import dataclass, field

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from shared.messaging.kafka import KafkaAddress
from tests.chaos.ledger.events import TRANSFERS, Message, Source

_log = logging.getLogger(__name__)
TICK_S = 0.02
UNACKNOWLEDGED = 20_000


@dataclass
class Sent:
    """What was given to Kafka."""

    messages: dict[uuid.UUID, Message] = field(default_factory=dict)
    acknowledged: set[uuid.UUID] = field(default_factory=set)
    ends: dict[int, int] = field(default_factory=dict)
    """Partition -> the offset after the last acknowledged record."""
    renewals: int = 0


class Steady:
    """`run()` sends `count` messages at `rate` a second; what an outage held back follows as fast as Kafka takes it."""

    def __init__(self, bootstrap: str, source: Source, count: int, rate: float) -> None:
        self.sent = Sent()
        self._address = KafkaAddress(bootstrap)
        self._source = source
        self._count = count
        self._rate = rate
        self._pending: dict[uuid.UUID, Message] = {}
        self._queue: deque[Message] = deque()
        self._broken = asyncio.Event()

    async def run(self) -> None:
        """Send all; return when every message is acknowledged. Cancel to give up."""
        begun = time.monotonic()
        while len(self.sent.acknowledged) < self._count:
            self._broken.clear()
            producer = self._address.writer("chaos-driver")
            try:
                async with asyncio.timeout(10):
                    await producer.start()
                self._queue = deque(self._pending.values())
                await self._send_with(producer, begun)
            except (KafkaError, OSError, TimeoutError) as error:
                _log.info("producer_renewed", extra={"error": repr(error)})
                self.sent.renewals += 1
                await asyncio.sleep(0.2)
            finally:
                await producer.give_up()

    async def _send_with(self, producer: AIOKafkaProducer, begun: float) -> None:
        quiet_since, acknowledged = time.monotonic(), len(self.sent.acknowledged)
        while len(self.sent.acknowledged) < self._count:
            due = min(self._count, int((time.monotonic() - begun) * self._rate)) - len(self.sent.messages)
            for _ in range(min(due, UNACKNOWLEDGED - len(self._pending))):
                message = self._source.make()
                self.sent.messages[message.id] = self._pending[message.id] = message
                self._queue.append(message)
            while self._queue:
                async with asyncio.timeout(10):
                    await self._send(producer, self._queue.popleft())
            if self._broken.is_set():
                raise KafkaError("a send failed")
            if len(self.sent.acknowledged) != acknowledged or not self._pending:
                quiet_since, acknowledged = time.monotonic(), len(self.sent.acknowledged)
            if time.monotonic() - quiet_since > 10:
                raise KafkaError("no acknowledgement for 10 s")
            await asyncio.sleep(TICK_S)

    async def _send(self, producer: AIOKafkaProducer, message: Message) -> None:
        headers = [(name.decode(), value) for name, value in message.headers]
        future = await producer.send(TRANSFERS.name, message.value, message.key, headers=headers)
        future.add_done_callback(lambda done: self._settle(message, done))

    def _settle(self, message: Message, done: asyncio.Future[RecordMetadata]) -> None:
        if done.cancelled() or done.exception() is not None:
            self._broken.set()
            return
        where = done.result()
        self._pending.pop(message.id, None)
        self.sent.acknowledged.add(message.id)
        self.sent.ends[where.partition] = max(self.sent.ends.get(where.partition, 0), where.offset + 1)
