"""The speed of the messaging runtime on Apache Kafka and a Postgres that syncs: `make bench-messaging`."""

import asyncio
import logging
from typing import Any

from benchmarks.messaging import throughput
from benchmarks.messaging.bank import open_bank


def run() -> list[dict[str, Any]]:
    """Measure; one line for each figure."""
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    with open_bank() as bank:
        return asyncio.run(throughput.run(bank))
