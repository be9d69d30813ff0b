"""What each alert rule must fire at, and what it must keep quiet at; `deploy.prometheus.check` has promtool try them.

A series is written as promtool reads it, a value a minute: `0x60 1x10` is 61 zeros and 11 ones, `0+5x60` counts up by
five. `at` is the minute at which the alert has to be firing, or not; `every` how many minutes lie between evaluations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

Series = Mapping[str, str]
_HTTP: Final = 'openbell_http_requests_total{service="api",status="%s"}'
_AGE: Final = 'openbell_work_age_seconds_%s{kind="discord",status="done"%s}'
_AGES: Final = (_AGE % ("bucket", ',le="30.0"'), _AGE % ("count", ""))
_JOBS: Final = 'openbell_job_runs_total{job_name="retention",outcome="%s"}'
_WORK: Final = 'openbell_work_settled_total{kind="discord",status="%s"}'
_LOOP: Final = 'openbell_event_loop_lag_seconds_bucket{instance="a",le="%s"}'
_API: Final = 'openbell_external_requests_total{api="stripe",outcome="%s"}'
_CHECKED: Final = 'openbell_payment_invariant_checked_timestamp_seconds{instance="%s",invariant="%s"}'
_RECONCILED: Final = 'openbell_broker_reconciliations_total{venue="paper",outcome="%s"}'
_DRIFT: Final = 'openbell_events_published_total{type="broker.positions.drifted.v1",state=""}'
_CHAIN_AT: Final = 'openbell_data_last_snapshot_timestamp_seconds{source="cboe"}'
_PAIR_AT: Final = 'openbell_data_last_pair_quote_timestamp_seconds{source="alpaca"}'
_PHASE: Final = 'openbell_data_poller_phase{phase="%s"}'
_HPA: Final = 'kube_horizontalpodautoscaler_%s{namespace="openbell",horizontalpodautoscaler="api"}'
_DISK: Final = 'kubelet_volume_stats_%s_bytes{namespace="openbell",persistentvolumeclaim="postgres-1"}'
_VOLUME: Final = 'node_filesystem_%s_bytes{mountpoint="/volumes/postgres"}'


@dataclass(frozen=True, slots=True)
class Case:
    """One alert. `fires` and `quiet` are series; `quiet` is close to the fault, not far from it."""

    fires: Series
    quiet: Series
    at: int = 30
    every: int = 1


def _two(names: tuple[str, str], first: str, second: str) -> Series:
    return dict(zip(names, (first, second), strict=True))


CASES: Final[Mapping[str, Case]] = {
    "GatewayErrorsFast": Case(
        {_HTTP % 500: "0+2x90", _HTTP % 200: "0+98x90"},
        {_HTTP % 500: "0+1x90", _HTTP % 200: "0+99x90"},  # 1%, ten times too much, and not yet 14.4 times
        at=80,
    ),
    "GatewayErrorsSlow": Case(
        {_HTTP % 503: "0+1x420", _HTTP % 200: "0+99x420"},
        {_HTTP % 503: "0+5x330 1650x90", _HTTP % 200: "0+495x420"},  # it was so, and is over
        at=410,
        every=5,
    ),
    "AlertsLateFast": Case(_two(_AGES, "0+80x90", "0+100x90"), _two(_AGES, "0+90x90", "0+100x90"), at=80),
    "AlertsLateSlow": Case(_two(_AGES, "0+90x420", "0+100x420"), _two(_AGES, "0+97x420", "0+100x420"), at=410, every=5),
    "FuseBlown": Case(
        {'openbell_consumer_fuse_open{consumer="alerts.activity"}': "1x30"},
        {'openbell_consumer_fuse_open{consumer="alerts.activity"}': "0x28 1x5"},  # for a minute, before a probe
        at=29,
    ),
    "ConsumerBehind": Case(
        {'openbell_consumer_lag_seconds{consumer="detector.chains",topic="data.chains",partition="1"}': "150x30"},
        {'openbell_consumer_lag_seconds{consumer="detector.chains",topic="data.chains",partition="1"}': "110x30"},
    ),
    "ConsumerFarBehind": Case(
        {'openbell_consumer_lag_seconds{consumer="detector.chains",topic="data.chains",partition="1"}': "0+60x30"},
        {'openbell_consumer_lag_seconds{consumer="detector.chains",topic="data.chains",partition="1"}': "800x30"},
    ),
    "OutboxStuck": Case(
        {'openbell_outbox_age_seconds{service="data"}': "0+60x30"},
        {'openbell_outbox_age_seconds{service="data"}': "0 50 90 2 70 0 50 3x30"},  # it drains between
        at=6,
    ),
    "EventsDied": Case(
        {'openbell_failed_jobs{consumer="alerts.users",status="dead",instance="a"}': "3x25 4x10"},
        {  # the same three, told by a replica that is new
            'openbell_failed_jobs{consumer="alerts.users",status="dead",instance="a"}': "3x40",
            'openbell_failed_jobs{consumer="alerts.users",status="dead",instance="b"}': "_x20 3x20",
        },
    ),
    "EventsParkedForLong": Case(
        {'openbell_failed_jobs_oldest_seconds{consumer="broker.commands",status="held"}': "3600+60x40"},
        {'openbell_failed_jobs_oldest_seconds{consumer="broker.commands",status="dead"}': "90000x40"},
    ),
    "DeliveriesFail": Case(
        {_WORK % "failed": "0+1x40", _WORK % "done": "0+2x40"},
        {_WORK % "failed": "0+1x40", _WORK % "done": "0+9x40"},
    ),
    "OutcomesUnknown": Case(
        {'openbell_work_unknown_total{kind="discord"}': "_x20 1x20"},  # born with its first
        {'openbell_work_unknown_total{kind="discord"}': "1x80"},
        at=35,
    ),
    "JobFails": Case(
        {_JOBS % "failed": "_x20 1x30", _JOBS % "done": "4x60"},
        {_JOBS % "failed": "0x20 1x30", _JOBS % "done": "4+1x60"},  # the next run went well
        at=40,
    ),
    "LedgerUnbalanced": Case(
        {'openbell_payment_ledger_unbalanced{instance="a"}': "1x90", _CHECKED % ("a", "ledger_adds_up"): "0+60x90"},
        {  # a found it over an hour ago, b looks since then
            'openbell_payment_ledger_unbalanced{instance="a"}': "1x130",
            _CHECKED % ("a", "ledger_adds_up"): "0x130",
            'openbell_payment_ledger_unbalanced{instance="b"}': "0x130",
            _CHECKED % ("b", "ledger_adds_up"): "0+60x130",
        },
        at=80,
    ),
    "LedgerDiffersFromStripe": Case(
        {
            'openbell_payment_ledger_stripe_differences{instance="a",found="amounts"}': "2x40",
            _CHECKED % ("a", "ledger_is_stripes"): "0+60x40",
        },
        {  # the next look found none
            'openbell_payment_ledger_stripe_differences{instance="a",found="amounts"}': "0x15 2x14 0x40",
            _CHECKED % ("a", "ledger_is_stripes"): "0+60x80",
        },
        at=35,
    ),
    "EntitlementsToldWrong": Case(
        {
            'openbell_payment_entitlements_told_wrong{instance="a"}': "1x40",
            _CHECKED % ("a", "told_right"): "0+60x40",
        },
        {  # mended, as the next look found
            'openbell_payment_entitlements_told_wrong{instance="a"}': "0x15 1x14 0x40",
            _CHECKED % ("a", "told_right"): "0+60x80",
        },
        at=35,
    ),
    "InvariantsNotChecked": Case(
        {_CHECKED % ("a", "told_right"): "0x80"},
        {_CHECKED % ("a", "told_right"): "0x80", _CHECKED % ("b", "told_right"): "0x30 1800x50"},
        at=70,
    ),
    "WebhooksSilent": Case(
        {'openbell_payment_webhooks_total{outcome="kept"}': "0+1x1440 1440x400"},
        {'openbell_payment_webhooks_total{outcome="kept"}': "0+1x1440 1440x300 1441x100"},
        at=1820,
        every=10,
    ),
    "WebhooksMissed": Case(
        {"openbell_payment_events_missed_total": "0x20 3x20"},
        {"openbell_payment_events_missed_total": "3x40"},
    ),
    "PaymentNeedsPerson": Case(
        {
            'openbell_payment_doubles_unresolved_total{kind="refund.create"}': "0x20 1x40",
            "openbell_payment_stops_unresolved_total": "0x60",
        },
        {  # one of the day before
            'openbell_payment_doubles_unresolved_total{kind="refund.create"}': "1x60",
            "openbell_payment_stops_unresolved_total": "2x60",
        },
    ),
    "CoinsUnmatched": Case(
        {
            'openbell_payment_crypto_unmatched_total{chain="ethereum"}': "0x60",
            'openbell_payment_unreconciled_total{chain="ethereum"}': "0x20 1x40",
        },
        {
            'openbell_payment_crypto_unmatched_total{chain="ethereum"}': "1x60",
            'openbell_payment_unreconciled_total{chain="ethereum"}': "3x60",
        },
    ),
    "PositionsDrifted": Case({_DRIFT: "_x80 1x20"}, {_DRIFT: "1x130"}, at=95),
    "ReconciliationFails": Case(
        {_RECONCILED % "failed": "0+1x60", _RECONCILED % "done": "9x60"},
        {_RECONCILED % "failed": "0+1x60", _RECONCILED % "done": "9+1x60"},
        at=50,
    ),
    "CredentialsUnreadable": Case(
        {"openbell_broker_credentials_unreadable_total": "0x20 1x20"},
        {"openbell_broker_credentials_unreadable_total": "1x40"},
    ),
    "TargetsUnreadable": Case(
        {"openbell_alerts_targets_unreadable_total": "0x20 1x20"},
        {"openbell_alerts_targets_unreadable_total": "1x40"},
    ),
    "ServiceDown": Case(
        {'up{job="openbell",instance="alerts:8080"}': "1x20 0x20"},
        {'up{job="openbell",instance="alerts:8080"}': "1x28 0 1x20", 'up{job="another"}': "0x40"},
    ),
    "ExternalApiFails": Case(
        {_API % "failed": "0+3x40", _API % "ok": "0+1x40"},
        {_API % "failed": "0+1x40", _API % "ok": "0+2x40", _API % "refused": "0+9x40"},
    ),
    "BreakerOpen": Case(
        {'openbell_breaker_open{target="cboe"}': "0x5 1x40"},
        {'openbell_breaker_open{target="cboe"}': "0x25 1x4 0 1x20"},
    ),
    "MarketDataSilent": Case(
        {_CHAIN_AT: "0x40", _PHASE % "polling": "1x40"},
        {_CHAIN_AT: "0x40", _PHASE % "polling": "0x40", _PHASE % "outside session": "1x40"},
    ),
    "PairQuotesSilent": Case({_PAIR_AT: "0x40"}, {_PAIR_AT: "0x27 1620x10"}, at=35),  # silent for long, and back
    "EventLoopLate": Case(
        {_LOOP % "0.25": "0+30x40", _LOOP % "0.5": "0+60x40", _LOOP % "+Inf": "0+60x40"},
        {_LOOP % "0.25": "0+59x40", _LOOP % "0.5": "0+60x40", _LOOP % "+Inf": "0+60x40"},
    ),
    "ProcessBusy": Case(
        {'process_cpu_seconds_total{job="openbell",instance="a"}': "0+57x40"},
        {'process_cpu_seconds_total{job="openbell",instance="a"}': "0+45x40"},
    ),
    "ReplicasAtLimit": Case(
        {
            _HPA % "status_current_replicas": "8x40",
            _HPA % "spec_max_replicas": "8x40",
            _HPA % "spec_min_replicas": "2x40",
        },
        {  # one that may not grow is no news
            _HPA % "status_current_replicas": "1x40",
            _HPA % "spec_max_replicas": "1x40",
            _HPA % "spec_min_replicas": "1x40",
        },
    ),
    "PoolExhausted": Case(
        {'openbell_database_pool_waiting{service="api",instance="a"}': "3x40"},
        {'openbell_database_pool_waiting{service="api",instance="a"}': "9 9 9 0 9 9 9 0 9 9 9 0 9 9 9 0 9 9 9 0 9"},
        at=20,
    ),
    "TransactionStalled": Case(
        {'openbell_postgres_oldest_transaction_seconds{service="alerts"}': "0+60x40"},
        {'openbell_postgres_oldest_transaction_seconds{service="alerts"}': "0+60x4 0+60x4 0+60x4 0+60x4 0+60x4 0x20"},
    ),
    "PreparedTransactionLeft": Case(
        {'openbell_postgres_oldest_prepared_seconds{service="api"}': "0+60x40"},
        {'openbell_postgres_oldest_prepared_seconds{service="api"}': "0x20 0+30x10 0x20"},
    ),
    "SlotHoldsBack": Case(
        {'openbell_postgres_slot_xmin_transactions{service="api"}': "0x5 2e6x40"},
        {
            'openbell_postgres_slot_xmin_transactions{service="api"}': "0+1000x40",
            'cnpg_pg_replication_slots_pg_wal_lsn_diff{slot_name="standby"}': "5e9x40",
        },
    ),
    "ConnectionsRunOut": Case(
        {
            'openbell_postgres_connections_all{service="api"}': "90x40",
            'openbell_postgres_connections_all{service="data"}': "91x40",
            'openbell_postgres_connections_max{service="api"}': "97x40",
        },
        {  # each of three tells the same forty
            'openbell_postgres_connections_all{service="api"}': "40x40",
            'openbell_postgres_connections_all{service="data"}': "40x40",
            'openbell_postgres_connections_all{service="alerts"}': "40x40",
            'openbell_postgres_connections_max{service="api"}': "97x40",
        },
    ),
    "DiskFills": Case(
        {_DISK % "available": "50e9-20e6x400", _DISK % "capacity": "100e9x400"},
        {_DISK % "available": "50e9-10e6x400", _DISK % "capacity": "100e9x400"},
        at=390,
        every=5,
    ),
    "DisksUnseen": Case({"up": "1x40"}, {_VOLUME % "avail": "10e9x40"}),
    "DatabaseGrowsFast": Case(
        {'openbell_postgres_database_bytes{service="api"}': "2e9+5e6x400"},
        {'openbell_postgres_database_bytes{service="api"}': "2e9+1e6x400"},
        at=390,
        every=5,
    ),
    "CertificateExpires": Case(
        {'certmanager_certificate_expiration_timestamp_seconds{name="openbell"}': "1100000x100"},
        {'certmanager_certificate_expiration_timestamp_seconds{name="openbell"}': "1300000x100"},
        at=90,
    ),
}
