"""What a person does about messaging: failed jobs, replays, and how far each consumer is.

`jobs` acts on one failed job, `bulk` on many, `runs` carries out what takes longer than a request, `positions` asks
Kafka where things stand. Everything here is served by shared.http.ops and merged over all services by the gateway.
"""

from dataclasses import dataclass

from shared.messaging.ops.bulk import Bulk
from shared.messaging.ops.jobs import Edit, FailedJobs
from shared.messaging.ops.positions import Positions
from shared.messaging.ops.rows import OPEN, By, Filter, Status
from shared.messaging.ops.runs import Runs


@dataclass(frozen=True, slots=True)
class Operations:
    """All of it for one service."""

    failed_jobs: FailedJobs
    bulk: Bulk
    runs: Runs
    positions: Positions


__all__ = ["OPEN", "Bulk", "By", "Edit", "FailedJobs", "Filter", "Operations", "Positions", "Runs", "Status"]
