"""The Kafkas that the suite runs against, each behind the port of shared.messaging.ports.

The in-memory one is for tests, and has no wire: what needs one (test_servers.py) is asked of the others only.
"""

import contextlib
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from deploy.local import kafka as local
from shared.contracts.topics import Topic
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.ports import Kafka
from tests.fakes.kafka import MemoryKafka
from tests.messaging.batches import produce


@dataclass
class Memory:
    """The Kafka in memory."""

    kafka: MemoryKafka = field(default_factory=lambda: MemoryKafka({}))

    async def create(self, *topics: Topic) -> None:
        for topic in topics:
            self.kafka.create(topic.name, topic.partitions)


@dataclass
class Server:
    """A Kafka that listens: Apache's, or the embedded one."""

    running: local.RunningKafka
    folder: Path

    @property
    def kind(self) -> str:
        return self.running.kind

    @property
    def address(self) -> KafkaAddress:
        """As a cluster would be: members have no fixed names, and topics no cap."""
        return KafkaAddress(self.running.bootstrap)

    @property
    def kafka(self) -> Kafka:
        return self.address

    async def create(self, *topics: Topic) -> None:
        await ensure_topics(self.address, topics)

    def restart(self) -> None:
        """Stop it and start it again, with its data and its port."""
        self.running.stop()
        self.running = local.resolve(self.folder, self.kind)

    async def committed(self, group: str) -> Mapping[TopicPartition, int]:
        """Return what others see of a group's offsets."""
        async with self.admin() as admin:
            return {name: one.offset for name, one in (await admin.list_consumer_group_offsets(group)).items()}

    async def put(self, topic: str, partition: int, batch: bytes) -> None:
        """Send a record batch as it is."""
        async with self.producer() as producer:
            await produce(producer, topic, partition, batch)

    @contextlib.asynccontextmanager
    async def producer(self, transactional_id: str | None = None) -> AsyncGenerator[AIOKafkaProducer]:
        """Yield a producer of somebody else's, with or without transactions."""
        producer = AIOKafkaProducer(bootstrap_servers=self.running.bootstrap, transactional_id=transactional_id)
        await producer.start()
        try:
            yield producer
        finally:
            await producer.stop()

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncGenerator[AIOKafkaAdminClient]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.running.bootstrap)
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    def member_command(self, group: str, topic: str) -> Sequence[str]:
        """Return the command of a member in a process of its own, to be killed."""
        script = Path(__file__).with_name("member.py")
        return (sys.executable, str(script), self.running.bootstrap, group, topic)
