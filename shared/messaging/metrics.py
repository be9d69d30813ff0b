"""Every metric of the messaging runtime, with what it is for. Counters move after the commit."""

import contextlib
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

EVENTS: Final = Counter(
    "openbell_consumer_events_total",
    "Records settled by a consumer: done, duplicate, skipped (not handled), parked (failed), behind (fenced key).",
    ("consumer", "outcome"),
)
RERUNS: Final = Counter(
    "openbell_consumer_reruns_total",
    "Transactions run again for a reason that is not the event's: deadlock, lost connection, lock time-out.",
    ("consumer",),
)
BATCH_SECONDS: Final = Histogram(
    "openbell_consumer_batch_seconds",
    "Time from a partition's batch fetched to all of it settled.",
    ("consumer",),
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
)
AGE_SECONDS: Final = Histogram(
    "openbell_consumer_event_age_seconds",
    "Age of the newest record of a settled batch: produce to effect.",
    ("consumer",),
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 15, 60, 300, 3600),
)
LAG: Final = Gauge(
    "openbell_consumer_lag_records",
    "Records in the partition that this consumer has not settled yet.",
    ("consumer", "topic", "partition"),
)
LAG_SECONDS: Final = Gauge(
    "openbell_consumer_lag_seconds",
    "Age of the oldest record that this consumer has not settled yet; 0 where none waits.",
    ("consumer", "topic", "partition"),
)
FUSE_OPEN: Final = Gauge(
    "openbell_consumer_fuse_open", "1 while the consumer is stopped because it only fails.", ("consumer",)
)
FAILED_JOBS: Final = Gauge(
    "openbell_failed_jobs",
    "Rows of failed_jobs by status; resolved and discarded are not counted.",
    ("consumer", "status"),
)
FAILED_JOBS_AGE_SECONDS: Final = Gauge(
    "openbell_failed_jobs_oldest_seconds",
    "Age of the oldest row of failed_jobs in this status; 0 where there is none.",
    ("consumer", "status"),
)
RETRIES: Final = Counter(
    "openbell_retries_total",
    "Attempts at waiting rows, by outcome: done, again, dead.",
    ("consumer", "outcome"),
)
RETRY_DELAY_ERROR_SECONDS: Final = Histogram(
    "openbell_retry_delay_error_seconds",
    "How much later than its due time a retry ran.",
    ("consumer",),
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30),
)
PUBLISHED: Final = Counter(
    "openbell_events_published_total",
    "Events that were committed, by type and by the state that they tell, where they tell one.",
    ("type", "state"),
)
RELAYED: Final = Counter("openbell_outbox_relayed_total", "Outbox rows acknowledged by Kafka.", ("service",))
RELAY_ERRORS: Final = Counter(
    "openbell_outbox_relay_errors_total",
    "Sends that failed and were begun again, with a new producer.",
    ("service",),
)
OUTBOX_ROWS: Final = Gauge("openbell_outbox_rows", "Rows waiting for the relay (an estimate when many).", ("service",))
OUTBOX_AGE_SECONDS: Final = Gauge("openbell_outbox_age_seconds", "Age of the oldest outbox row.", ("service",))


def outbox(service: str, rows: int, age_s: float) -> None:
    """Show how full the outbox is; its leader alone does."""
    OUTBOX_ROWS.labels(service).set(rows)
    OUTBOX_AGE_SECONDS.labels(service).set(age_s)


def outbox_elsewhere(service: str) -> None:
    """Show nothing of it any more: another replica leads, and what was true here would stay on show."""
    for gauge in (OUTBOX_ROWS, OUTBOX_AGE_SECONDS):
        with contextlib.suppress(KeyError):
            gauge.remove(service)
