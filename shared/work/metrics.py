"""Every metric of claimed rows, by kind of work."""

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

UNKNOWN: Final = Counter("openbell_work_unknown_total", "Effects whose outcome nobody knows", ["kind"])
SETTLED: Final = Counter("openbell_work_settled_total", "Rows that reached their end", ["kind", "status"])
RETRIED: Final = Counter("openbell_work_retried_total", "Attempts that are made again later", ["kind"])
LOST: Final = Counter("openbell_work_lost_total", "Rows whose lease went to another worker meanwhile", ["kind"])
IN_FLIGHT: Final = Gauge("openbell_work_in_flight", "Effects being performed now", ["kind"])
WAITED: Final = Histogram(
    "openbell_work_wait_seconds",
    "From due to started",
    ["kind"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300),
)
AGE: Final = Histogram(
    "openbell_work_age_seconds",
    "From written, or from when it was planned for, to its end, retries included",
    ["kind", "status"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 21600),
)
TOOK: Final = Histogram("openbell_work_seconds", "One effect, from started to its outcome", ["kind"])
