"""The speed of the messaging runtime on Apache Kafka and a Postgres that syncs: `make bench-messaging`."""

import logging
from typing import Any

import uvloop

from benchmarks.messaging import idle, latency, relaying, throughput
from benchmarks.messaging.bank import open_bank
from shared.lean import collect_rarely


def run() -> list[dict[str, Any]]:
    """Measure; one line for each figure."""
    collect_rarely()  # as a service's process does, on the same loop
    logging.disable(logging.ERROR)  # storms tell of every parked event
    with open_bank() as bank:
        rows = [row for part in (throughput, relaying, latency) for row in uvloop.run(part.run(bank))]
    return [*rows, *idle.run()]
