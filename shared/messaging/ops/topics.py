"""Which topics Kafka has."""

from typing import Any

from aiokafka.admin import AIOKafkaAdminClient

from shared.messaging.kafka import KafkaAddress


async def partitions(address: KafkaAddress) -> dict[str, int]:
    """Return how many partitions each topic has. Raises KafkaError, OSError."""
    admin: Any = AIOKafkaAdminClient(**address.connection())
    try:
        await admin.start()
        return {one["topic"]: len(one["partitions"]) for one in await admin.describe_topics()}
    finally:
        await admin.close()
