"""The producer: many records at once, and nothing behind anybody's back when it gives up."""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import lru_cache
from random import randrange
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError
from aiokafka.partitioner import murmur2
from aiokafka.protocol.metadata import MetadataRequest

from shared.messaging.closing import close_all, leave_nothing_open
from shared.messaging.ports import Outgoing

_SHORT: Final = 256


@lru_cache(maxsize=16_384)  # of short keys: a dead letter's may have any length
def _hash(key: bytes) -> int:
    return murmur2(key) & 0x7FFFFFFF


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition of a key among so many, as every Kafka client chooses it.

    A key's hash is worked out once: that is slow in Python.
    """
    return (_hash(key) if len(key) <= _SHORT else _hash.__wrapped__(key)) % partitions


def _heard(future: asyncio.Future[Any]) -> None:
    """Nobody need ask how it ended: whoever waited may be gone."""
    if not future.cancelled():
        future.exception()


class Writer(AIOKafkaProducer):
    """A producer that can give up, and that takes many records at once."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        leave_nothing_open(self.client)

    async def send_all(self, topic: str, records: Sequence[Outgoing]) -> list[asyncio.Future[Any]]:
        """Hand records over, in their order; a future for each, done when Kafka has it. A batch's records share one.

        What cannot be handed over, and all that follows it, is failed at once. Raises KafkaError when that is so of
        all. aiokafka's `send` looks at each partition for each record, and has a future for each: twice the work.
        """
        partitions = len(await self.partitions_for(topic))
        filling: dict[int, int] = {}  # of a partition, the batch that has room
        batches: list[tuple[int, Any]] = []
        place: list[int] = []
        for key, value, headers in records:
            if len(value or b"") + len(key or b"") > self._max_request_size:
                raise MessageSizeTooLargeError(f"more than {self._max_request_size} bytes")
            partition = randrange(partitions) if key is None else partition_of(key, partitions)  # noqa: S311 - any of them
            number = filling.get(partition, -1)
            one = {"timestamp": None, "key": key, "value": value, "headers": headers}
            if number < 0 or batches[number][1].append(**one) is None:
                number = filling[partition] = len(batches)
                batches.append((partition, self.create_batch()))
                batches[number][1].append(**one)  # there is room for a first one always
            place.append(number)
        futures: list[asyncio.Future[Any]] = []
        for partition, batch in batches:
            try:
                futures.append(await self.send_batch(batch, topic, partition=partition))
            except (KafkaError, OSError) as error:
                futures += [asyncio.get_running_loop().create_future()] * (len(batches) - len(futures))
                futures[-1].set_exception(error)
                break
            futures[-1].add_done_callback(_heard)
        return [futures[number] for number in place]

    async def answers(self) -> bool:
        """Tell whether a broker answers."""
        with contextlib.suppress(KafkaError):  # a broker that is gone need not be the only one
            await self.client.send(self.client.get_random_node(), MetadataRequest([], allow_auto_topic_creation=False))
            return True
        return bool(await self.client.force_metadata_update())

    async def give_up(self) -> None:
        """Stop at once. What is not sent is never sent; what waits for an answer fails.

        stop() first sends all it holds, for ever while Kafka is away, which would outlive a new producer.
        """
        sender: Any = self._sender
        batches: Any = self._message_accumulator
        sending: asyncio.Task[None] | None = sender.sender_task if sender is not None else None
        if sending is not None:
            sending.cancel()
        await self.client.close()
        batches.fail_all(KafkaConnectionError("the producer was given up"))
        for _ in range(20):  # it waits for each of its requests in turn, and each may wait for a broker
            if sending is None or sending.done():
                break
            await asyncio.wait((sending,), timeout=0.1)
            sending.cancel()
        try:
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(2):
                    await self.stop()
        finally:
            close_all(self.client)
