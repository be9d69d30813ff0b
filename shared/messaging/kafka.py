"""Kafka itself: clients with the settings that the promises need, and topics with the shape that topics.py states."""

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    RecordTooLargeError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest

from shared.contracts.topics import Topic
from shared.messaging import raw_fetch, unpacked
from shared.messaging.closing import close_all, leave_nothing_open
from shared.messaging.ports import Unreadable
from shared.messaging.record import Record
from shared.messaging.writer import Writer
from shared.settings import SharedSettings

_DAY_MS: Final = 86_400_000
_PATIENT_MS: Final = 2000
_BUSY_MS: Final = 25
"""How long a fetch waits for records: one that asks for all of our partitions, and one that leaves a busy one out,"""
_BUSY_SHARE: Final = 20
"""which is more patient the longer it has been busy: one such part of that time."""
_PREFETCHED_S: Final = 0.02  # less makes more and smaller batches, which cost more than the wait
_AT_ONCE_S: Final = 0.01
_CUT: Final = 17  # bytes of a batch that do not make one
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Where Kafka is, how to log in there, and what it lacks (see shared.settings)."""

    bootstrap: str
    static_members: bool = False
    small_topics: bool = False
    ca: Path | None = None
    user: str | None = None
    password: str = field(default="", repr=False)

    @classmethod
    def of(cls, settings: SharedSettings) -> "KafkaAddress":
        """Return the address that settings name."""
        has = (settings.kafka_bootstrap, settings.kafka_static_members, settings.kafka_small_topics)
        password = settings.kafka_password.get_secret_value() if settings.kafka_password else ""
        return cls(*has, ca=settings.kafka_ca, user=settings.kafka_user, password=password)

    def connection(self) -> dict[str, Any]:
        """Return the options with which every client reaches it. Raises OSError when the certificate is not there."""
        protocol = "PLAINTEXT" if self.ca is None else "SSL"
        options: dict[str, Any] = {"bootstrap_servers": self.bootstrap, "security_protocol": protocol}
        if self.ca is not None:
            options["ssl_context"] = ssl.create_default_context(cafile=self.ca)
        if self.user is None:
            return options
        login = {"sasl_plain_username": self.user, "sasl_plain_password": self.password}
        return {**options, **login, "security_protocol": f"SASL_{protocol}", "sasl_mechanism": "SCRAM-SHA-512"}

    def reader(self, group: str, member: str) -> "Reader":
        """Return a group member, not started. Offsets live in Postgres: nothing is committed or reset by itself.

        max_poll_interval is out of the way on purpose: our own deadline cuts a handler, and leaving the group over a
        slow one would only add a rebalance.
        """
        return Reader(
            **self.connection(),
            group_id=group,
            client_id=f"{group}-{member}",
            group_instance_id=f"{group}-{member}" if self.static_members else None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",  # what a producer took back never happened
            max_poll_interval_ms=_DAY_MS,
            session_timeout_ms=10_000,
            rebalance_timeout_ms=30_000,  # long enough to finish what is in flight
            heartbeat_interval_ms=3_000,
            fetch_max_wait_ms=_PATIENT_MS,
            consumer_timeout_ms=5000,  # how often the client looks around; what it waits for wakes it
            max_partition_fetch_bytes=4 * 1_048_576,
            fetch_max_bytes=8 * 1_048_576,  # of all partitions: an answer that a slow line brings in time
            metadata_max_age_ms=30_000,
        )

    def writer(self, client_id: str) -> "Writer":
        """Return an idempotent producer that waits for all in-sync replicas, not started."""
        return Writer(
            **self.connection(),
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            max_batch_size=512 * 1024,
            max_request_size=16 * 1_048_576,
            request_timeout_ms=30_000,  # longer than the relay waits: a batch never expires while a later one is sent
            metadata_max_age_ms=30_000,
        )


class Reader(AIOKafkaConsumer):
    """A group member that can read what aiokafka's parser cannot, and whose memory no record can exhaust.

    A busy partition does not hold up the others. aiokafka has one fetch at a time under way to a broker, and sends none
    while records that came for any partition are not taken, for 100 ms: here 20 ms. The next fetch leaves the busy one
    out, and is a short one, for the busy one may have to wait for it.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._of: object = None  # the assignment that this is true of:
        self._busy_since: dict[TopicPartition, float] = {}  # what no fetch asks for
        client: Any = self._client  # between the wire and aiokafka's parser, which unpacks whatever comes
        client.send = partial(self._send, client.send)
        leave_nothing_open(client)

    async def start(self) -> None:
        """Connect, and join the group in the background."""
        await super().start()
        fetcher: Any = self._fetcher
        fetcher._prefetch_backoff = _PREFETCHED_S  # noqa: SLF001 - no option of the consumer's
        fetcher._in_flight = _UnderWay(lambda: fetcher._notify(fetcher._wait_consume_future))  # noqa: SLF001

    async def stop(self) -> None:
        """Leave the group and close. Cancelled, it closes all the same."""
        try:
            await super().stop()
        finally:
            close_all(self._client)

    async def _send(self, send: Any, node: Any, request: Any, **options: Any) -> Any:
        """Cut a fetch's answer where it unpacks to too much. A batch that does by itself looks cut off: read raw."""
        if type(request) is not FetchRequest:
            return await send(node, request, **options)
        own: Any = vars(request)
        own["_max_wait_ms"] = min(own["_max_wait_ms"], self._patience_ms(node, request))
        asked = time.monotonic()
        response = await send(node, request, **options)
        nothing = not any(data for _, parts in response.topics for *_, data in parts)
        if nothing and time.monotonic() - asked < _AT_ONCE_S:
            await asyncio.sleep(_BUSY_MS / 1000)  # the embedded broker never waits, and would be asked all the time
        response.topics = [
            (topic, [(*part, _bounded(data) if data else data) for *part, data in parts])
            for topic, parts in response.topics
        ]
        return response

    def _patience_ms(self, node: Any, request: FetchRequest) -> int:
        """Return how long a fetch may wait: the partition of the broker's that it leaves out may have to wait for it.

        It is busy, stands still, or has no position yet; one that has been so for long can wait a little longer.
        """
        assignment: Any = getattr(self._subscription.subscription, "assignment", None)
        if assignment is not self._of:
            self._of, self._busy_since = assignment, {}
        asked = {TopicPartition(topic, part[0]) for topic, parts in request.topics for part in parts}
        for one in asked:
            self._busy_since.pop(one, None)
        leader: Any = self._client.cluster.leader_for_partition
        now = time.monotonic()
        since = [self._busy_since.setdefault(one, now) for one in self.assignment() - asked if leader(one) == node]
        if not since:
            return _PATIENT_MS
        return min(_PATIENT_MS, max(_BUSY_MS, int((now - max(since)) * 1000 / _BUSY_SHARE)))

    async def fetch(
        self, partition: TopicPartition, offset: int, *, wait_ms: int, limit: int
    ) -> tuple[list[Record | Unreadable], int]:
        """Return what follows in the partition, whose position is `offset`, and the offset after it."""
        try:
            batches = await self.getmany(partition, timeout_ms=wait_ms, max_records=limit)
        except (CorruptRecordException, RecordTooLargeError) as error:
            return await self._fetch_raw(partition, offset, error)
        except KafkaError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a parser or codec raises over bytes it cannot read
            return await self._fetch_raw(partition, offset, error)
        records: list[Record | Unreadable] = [
            Record(
                partition.topic,
                partition.partition,
                one.offset,
                one.key,
                one.value,
                tuple([(name.encode(), value) for name, value in one.headers]),
                one.timestamp,
            )
            for one in batches.get(partition, ())
        ]
        after = records[-1].offset + 1 if records else offset
        assignment: Any = self._subscription.subscription.assignment  # none between two assignments
        state = assignment.state_value(partition) if assignment is not None else None
        if state is not None and state.has_valid_position:
            after = max(after, state.position)  # what follows may not be for us: the mark of a transaction's end
        return records, after

    async def _fetch_raw(
        self, partition: TopicPartition, offset: int, error: Exception
    ) -> tuple[list[Record | Unreadable], int]:
        about = {"partition": str(partition), "offset": offset, "error": repr(error)[:300]}
        _log.warning("records_unparsed", extra=about)
        found, after = await raw_fetch.fetch(self, partition, offset)
        if not found and after == offset:
            raise KafkaError(f"{partition} cannot be read at {offset}: {error!r}") from error
        self.seek(partition, after)
        return found, after

    async def cluster_id(self) -> str | None:
        """Return the name that Kafka gave itself when it was made; None where it gives none."""
        client: Any = self._client
        response = await client.send(client.get_random_node(), MetadataRequest([], allow_auto_topic_creation=False))
        return getattr(response, "cluster_id", None) or None


class _UnderWay(set[object]):
    """The brokers with a fetch under way; the fetcher looks again when one is done.

    aiokafka's, woken by something else just as a fetch ends, still finds it under way, sends no other, and then waits
    for nothing until `consumer_timeout_ms` is over.
    """

    def __init__(self, done: Callable[[], None]) -> None:
        super().__init__()
        self._done = done

    def discard(self, element: object, /) -> None:
        super().discard(element)
        self._done()


def _bounded(data: bytes) -> bytes:
    return data[: unpacked.readable(data) or _CUT]


async def ensure_topics(address: KafkaAddress, topics: Iterable[Topic]) -> None:
    """Create the topics that are missing. Existing ones stay as they are."""
    admin: Any = AIOKafkaAdminClient(**address.connection())
    leave_nothing_open(admin._client)  # noqa: SLF001 - no other way to it
    await admin.start()
    try:
        existing = set(await admin.list_topics())
        missing = [topic for topic in topics if topic.name not in existing]
        if not missing:
            return
        brokers = len((await admin.describe_cluster())["brokers"])
        response: Any = await admin.create_topics([_new_topic(topic, address, min(3, brokers)) for topic in missing])
        for name, code, *rest in response.topic_errors:
            error = for_code(code)
            if code and error is not TopicAlreadyExistsError:
                raise KafkaError(f"cannot create topic {name}: {error.__name__} {rest}")
        _log.info("topics_created", extra={"topics": [topic.name for topic in missing]})
    finally:
        await admin.close()


async def wait_for_kafka(address: KafkaAddress, timeout_s: float) -> None:
    """Return once a broker takes connections; an aiokafka client started before that raises at once.

    Raises TimeoutError.
    """
    host, _, port = address.bootstrap.split(",")[0].rpartition(":")
    async with asyncio.timeout(timeout_s):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.2)
            else:
                writer.close()
                return


def _new_topic(topic: Topic, address: KafkaAddress, replicas: int) -> NewTopic:
    configs = {
        "retention.ms": str(topic.retention_ms),
        "max.message.bytes": str(topic.max_message_bytes),
        "cleanup.policy": "compact" if topic.compact else "delete",
    }
    if replicas > 1:
        configs["min.insync.replicas"] = "2"
    if address.small_topics:
        configs |= {"retention.bytes": "2000000", "segment.bytes": "1000000"}
    return NewTopic(topic.name, topic.partitions, replicas, topic_configs=configs)
