"""The list of all metrics, docs/metrics.md, made from the code.

    python -m deploy.metrics           # write docs/metrics.md

A metric is a module-level object of prometheus_client. What the code cannot say is said here: what bounds each label,
and, for a gauge, how what several replicas show is put together.
"""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

import services
import shared

DOCUMENT: Final = Path(__file__).parents[1] / "docs" / "metrics.md"

LABELS: Final[Mapping[str, str]] = {
    "api": "systems that we call, named in code; crypto chains and exchanges by the settings",
    "chain": "chains of the settings",
    "channel": "channels in code",
    "consumer": "consumers in code",
    "found": "words in code",
    "how": "words in code",
    "invariant": "invariants in code",
    "job_name": "jobs in code; Prometheus uses `job` itself",
    "kind": "kinds in code",
    "method": "HTTP methods, others are OTHER",
    "outcome": "words in code",
    "partition": "partitions of our topics",
    "phase": "words in code",
    "provider": "mail providers that we speak to",
    "reason": "words in code",
    "route": "templates of paths, never paths",
    "service": "our services",
    "source": "sources of data in code",
    "state": "states of a contract's field",
    "status": "HTTP status codes, or states in code",
    "target": "services behind the gateway, sources of data, addresses of venues",
    "topic": "our topics",
    "type": "types of events, ours or Stripe's",
    "venue": "venues of the settings",
}
"""Each label, and what bounds how many values it takes. No users, symbols, orders, addresses or texts of errors."""

OVER_REPLICAS: Final[Mapping[str, str]] = {
    "openbell_breaker_open": "max",
    "openbell_broker_streams": "sum",
    "openbell_consumer_fuse_open": "max",
    "openbell_consumer_lag_records": "sum",
    "openbell_consumer_lag_seconds": "max",
    "openbell_data_last_pair_quote_timestamp_seconds": "max",
    "openbell_data_last_snapshot_timestamp_seconds": "max",
    "openbell_data_poller_phase": "max",
    "openbell_database_pool_size": "sum",
    "openbell_database_pool_used": "sum",
    "openbell_database_pool_waiting": "sum",
    "openbell_failed_jobs": "max",
    "openbell_failed_jobs_oldest_seconds": "max",
    "openbell_job_last_done_timestamp_seconds": "max",
    "openbell_outbox_age_seconds": "max",
    "openbell_outbox_rows": "max",
    "openbell_payment_customers_doubled": "max",
    "openbell_payment_entitlements_told_wrong": "max",
    "openbell_payment_invariant_checked_timestamp_seconds": "max",
    "openbell_payment_ledger_stripe_differences": "max",
    "openbell_payment_ledger_unbalanced": "max",
    "openbell_payment_sweep_different": "max",
    "openbell_postgres_connections": "max",
    "openbell_postgres_connections_all": "max",
    "openbell_postgres_connections_max": "max",
    "openbell_postgres_database_bytes": "max",
    "openbell_postgres_oldest_prepared_seconds": "max",
    "openbell_postgres_oldest_transaction_seconds": "max",
    "openbell_postgres_slot_xmin_transactions": "max",
    "openbell_realtime_sockets": "sum",
    "openbell_work_in_flight": "sum",
}
"""Gauges: `sum` where each replica shows its own part, `max` where all of them read the same."""

_UNITS: Final = {"seconds": "seconds", "bytes": "bytes", "open": "0 or 1", "phase": "0 or 1"}

_HEAD: Final = """# Metrics

Made by `python -m deploy.metrics`; a test holds it to the code. Every service shows its own at `/metrics`, to operators
(`OPENBELL_OPERATOR_NETWORKS`), with `process_*` and `python_*` of prometheus_client beside them.

## How they are named

`openbell_` first, then the part, then what is measured, the unit last and in base units: `_seconds`, `_bytes`. A
counter ends in `_total`, a moment in `_timestamp_seconds` (Unix time). A counter moves after the commit, so what was
rolled back is not counted. Nothing is asked of Postgres when Prometheus scrapes: a gauge shows what its owner last saw.

## How replicas are put together

- Counters and histograms: each replica counts what it did. `sum` of `rate`, and quantiles of the sum:
  `histogram_quantile(0.99, sum by (le) (rate(...[5m])))`.
- Gauges marked **sum**: each replica shows its own part (its partitions, its sockets, its connections).
- Gauges marked **max**: every replica reads the same table or states the same fact. Summed over three replicas, one
  dead event would be three. `max by (consumer)` is right whatever the number of replicas.
- What a job by the clock measures (the payment invariants) is shown by the replica that ran it, until it runs it again;
  another may have measured later. Such rules ask `openbell_payment_invariant_checked_timestamp_seconds` of the same
  instance, too.

Where several services run in one process (`make run`), they share one registry: scrape one of them.
"""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as the code declares it."""

    name: str
    kind: str
    labels: tuple[str, ...]
    about: str
    module: str

    @property
    def unit(self) -> str:
        """What it counts in."""
        last = self.name.removesuffix("_total").rpartition("_")[2]
        return _UNITS.get(last, "count")

    @property
    def over_replicas(self) -> str:
        """How replicas are put together."""
        return OVER_REPLICAS[self.name] if self.kind == "gauge" else "sum of rate"


def declared() -> list[Metric]:
    """Return every metric in the code, by name."""
    found: dict[str, Metric] = {}
    for module in _modules():
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, Counter | Gauge | Histogram):
                (described,) = value.describe()
                name = described.name + ("_total" if described.type == "counter" else "")
                labels = tuple(value._labelnames)  # noqa: SLF001 - nothing public tells them  # pyright: ignore[reportPrivateUsage]
                one = Metric(name, described.type, labels, described.documentation.rstrip("."), module)
                if name not in found or len(module) < len(found[name].module):
                    found[name] = one
    return [found[name] for name in sorted(found)]


def document() -> str:
    """Return docs/metrics.md."""
    lines = [_HEAD]
    part = ""
    for metric in declared():
        if (own := metric.name.split("_")[1]) != part:
            part = own
            lines += [
                f"\n## {part}\n",
                "| metric | type | labels | unit | replicas | what it tells |",
                "|---|---|---|---|---|---|",
            ]
        labels = ", ".join(metric.labels)
        lines.append(
            f"| `{metric.name}` | {metric.kind} | {labels} | {metric.unit} | {metric.over_replicas} | {metric.about} |"
        )
    lines += ["\n## Labels\n", "What bounds each; a test refuses others.\n", "| label | values |", "|---|---|"]
    lines += [f"| {label} | {bound} |" for label, bound in sorted(LABELS.items())]
    return "\n".join(lines) + "\n"


def _modules() -> Iterator[str]:
    for package in (shared, services):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in found.name and not found.name.endswith("__main__"):
                yield found.name


if __name__ == "__main__":
    DOCUMENT.write_text(document())
