"""Dashboards of what services do for their users: payments, brokerage, alerts, detection, data sources."""

from typing import Final

from deploy.grafana.panel import CHANNELS, Board, Panel, published, quantile, quantiles, rate

_AGE: Final = "openbell_work_age_seconds"
_DELIVERED: Final = f'kind=~"{CHANNELS}",status="done"'

PAYMENTS: Final = Board(
    "openbell-payments",
    "Openbell: payments",
    "Webhooks, subscriptions, payments, and whether the ledger adds up.",
    (
        Panel(
            "Ledger: currencies that are not zero",
            "0, always.",
            (("max(openbell_payment_ledger_unbalanced)", "unbalanced"),),
            stat=True,
        ),
        Panel(
            "Subscriptions that allow what was not told",
            "0, always.",
            (("max(openbell_payment_entitlements_told_wrong)", "wrong"),),
            stat=True,
        ),
        Panel(
            "Customers doubled",
            "Users with more than one at Stripe.",
            (("max(openbell_payment_customers_doubled)", "doubled"),),
            stat=True,
        ),
        Panel(
            "Invariants: last look",
            "Seconds since.",
            (("time() - max by (invariant) (openbell_payment_invariant_checked_timestamp_seconds)", "{{invariant}}"),),
            "s",
        ),
        Panel(
            "Webhooks",
            "New, and known already.",
            ((rate("openbell_payment_webhooks_total", "outcome"), "{{outcome}}"),),
            "ops",
        ),
        Panel(
            "Webhooks that did not come",
            "Fetched by the sweep.",
            (("sum(rate(openbell_payment_events_missed_total[$__rate_interval]))", "missed"),),
            "ops",
        ),
        Panel(
            "Objects of Stripe applied",
            "By kind.",
            ((rate("openbell_payment_objects_applied_total", "kind"), "{{kind}}"),),
            "ops",
        ),
        Panel(
            "Objects stuck",
            "Could not be applied.",
            ((rate("openbell_payment_objects_stuck_total", "kind"), "{{kind}}"),),
            "ops",
            after_fault="counted from the first object on that cannot be applied",
        ),
        Panel("States of subscriptions and payments", "As they are told.", (published("payment[.].*"),), "ops"),
        Panel(
            "Ledger and Stripe differ",
            "Balance transactions.",
            (("max by (found) (openbell_payment_ledger_stripe_differences)", "{{found}}"),),
        ),
        Panel(
            "Entries of the ledger",
            "By kind.",
            ((rate("openbell_payment_ledger_entries_total", "kind"), "{{kind}}"),),
            "ops",
        ),
        Panel("Stripe", "Time of its answers.", quantiles("openbell_external_request_seconds", 'api="stripe"'), "s"),
    ),
)
BROKERAGE: Final = Board(
    "openbell-brokerage",
    "Openbell: brokerage",
    "Orders, venues, positions.",
    (
        Panel("Orders by state", "As they are told.", (published("broker[.]order[.].*"),), "ops"),
        Panel(
            "Commands", "As they are taken.", (published("broker[.](order[.]requested|replace|cancel|close).*"),), "ops"
        ),
        Panel("Positions", "Changed, or drifted.", (published("broker[.]positions?[.].*"),), "ops"),
        Panel(
            "Sent to venues",
            "By how it ended.",
            (
                (
                    rate(
                        "openbell_work_settled_total",
                        "kind, status",
                        'kind="venue"',
                    ),
                    "{{kind}} {{status}}",
                ),
            ),
            "ops",
        ),
        Panel(
            "Reconciliations",
            "By how they ended.",
            ((rate("openbell_broker_reconciliations_total", "venue, outcome"), "{{venue}} {{outcome}}"),),
            "ops",
        ),
        Panel(
            "Streams",
            "Accounts whose venue is listened to.",
            (("sum by (venue) (openbell_broker_streams)", "{{venue}}"),),
        ),
        Panel(
            "Streams lost",
            "A second.",
            ((rate("openbell_broker_stream_gaps_total", "venue"), "{{venue}}"),),
            "ops",
            after_fault="counted from the first loss on",
        ),
        Panel(
            "Credentials that did not open",
            "0, always.",
            (("sum(openbell_broker_credentials_unreadable_total)", "unreadable"),),
            stat=True,
        ),
        Panel(
            "OAuth refreshes",
            "By how they ended.",
            ((rate("openbell_broker_oauth_refreshes_total", "venue, outcome"), "{{venue}} {{outcome}}"),),
            "ops",
            after_fault="needs a venue with OAuth",
        ),
    ),
)

ALERTS: Final = Board(
    "openbell-alerts",
    "Openbell: alerts",
    "From unusual activity to a message.",
    (
        Panel("Alerts and notices", "Raised, updated.", (published("alerts[.](alert|notice)[.].*"),), "ops"),
        Panel(
            "Deliveries by outcome",
            "Of alerts and notices, by channel.",
            ((rate("openbell_work_settled_total", "kind, status"), "{{kind}} {{status}}"),),
            "ops",
        ),
        Panel("Latency of delivery", "From the row to the channel's yes.", quantiles(_AGE, _DELIVERED), "s"),
        Panel("By channel", "p99.", ((quantile(0.99, _AGE, "kind", _DELIVERED), "{{kind}}"),), "s"),
        Panel(
            "Waiting for a worker",
            "From due to started, p99.",
            ((quantile(0.99, "openbell_work_wait_seconds", "kind"), "{{kind}}"),),
            "s",
        ),
        Panel("Time of one effect", "p99.", ((quantile(0.99, "openbell_work_seconds", "kind"), "{{kind}}"),), "s"),
        Panel("In flight", "Now.", (("sum by (kind) (openbell_work_in_flight)", "{{kind}}"),)),
        Panel(
            "Made again later",
            "Attempts.",
            ((rate("openbell_work_retried_total", "kind"), "{{kind}}"),),
            "ops",
        ),
        Panel(
            "Outcomes unknown",
            "Nobody knows how they ended.",
            ((rate("openbell_work_unknown_total", "kind"), "{{kind}}"),),
            "ops",
            after_fault="needs a process that dies in the middle",
        ),
        Panel(
            "Systems of others",
            "By outcome.",
            ((rate("openbell_external_requests_total", "api, outcome"), "{{api}} {{outcome}}"),),
            "ops",
        ),
        Panel("Their answers", "p90.", ((quantile(0.9, "openbell_external_request_seconds", "api"), "{{api}}"),), "s"),
        Panel(
            "What mail providers tell",
            "Delivered, bounced, complained.",
            ((rate("openbell_alerts_mail_events_total", "provider, kind"), "{{provider}} {{kind}}"),),
            "ops",
            after_fault="needs a mail provider with webhooks",
        ),
        Panel(
            "Charts",
            "Asked for, by what came of it.",
            ((rate("openbell_alerts_charts_total", "outcome"), "{{outcome}}"),),
            "ops",
        ),
        Panel(
            "Targets that did not open",
            "0, always.",
            (("sum(openbell_alerts_targets_unreadable_total)", "unreadable"),),
            stat=True,
        ),
    ),
)
DETECTION: Final = Board(
    "openbell-detection",
    "Openbell: detection",
    "Chains in, unusual activity out.",
    (
        Panel(
            "Chains",
            "Scanned, a second.",
            (("sum(rate(openbell_detector_chains_total[$__rate_interval]))", "chains"),),
            "ops",
        ),
        Panel(
            "Contracts",
            "Scanned, a second.",
            (("sum(rate(openbell_detector_contracts_total[$__rate_interval]))", "contracts"),),
            "ops",
        ),
        Panel(
            "Unusual",
            "Contracts that met the rule, a second.",
            (("sum(rate(openbell_detector_unusual_total[$__rate_interval]))", "unusual"),),
            "ops",
        ),
        Panel(
            "Rows left out",
            "By what was wrong.",
            ((rate("openbell_detector_rows_faulty_total", "reason"), "{{reason}}"),),
            "ops",
            after_fault="the simulator makes no faulty rows",
        ),
        Panel(
            "Time of a batch",
            "Fetched to settled.",
            quantiles("openbell_consumer_batch_seconds", 'consumer="detector.chains"'),
            "s",
        ),
        Panel(
            "Age of chains at their effect",
            "From Kafka to the commit.",
            quantiles("openbell_consumer_event_age_seconds", 'consumer="detector.chains"'),
            "s",
        ),
        Panel("Told", "Events of the detector.", (published("detector[.].*"),), "ops"),
    ),
)
DATA: Final = Board(
    "openbell-data",
    "Openbell: data sources",
    "What is asked of markets, and what comes.",
    (
        Panel(
            "Polls by outcome",
            "A second.",
            ((rate("openbell_data_polls_total", "source, outcome"), "{{source}} {{outcome}}"),),
            "ops",
        ),
        Panel(
            "Last new chain",
            "Seconds since.",
            (("time() - max by (source) (openbell_data_last_snapshot_timestamp_seconds)", "{{source}}"),),
            "s",
            stat=True,
        ),
        Panel(
            "Last quote of a pair",
            "Seconds since a new one.",
            (("time() - max by (source) (openbell_data_last_pair_quote_timestamp_seconds)", "{{source}}"),),
            "s",
            stat=True,
        ),
        Panel(
            "Phase of the poller",
            "1 for what it is doing.",
            (("max by (phase) (openbell_data_poller_phase)", "{{phase}}"),),
        ),
        Panel(
            "Breakers",
            "1: nothing is asked for the moment.",
            (("max by (target) (openbell_breaker_open)", "{{target}}"),),
        ),
        Panel(
            "Rows dropped",
            "By what was wrong.",
            ((rate("openbell_data_rows_dropped_total", "source, reason"), "{{source}} {{reason}}"),),
            "ops",
            after_fault="the simulator makes no faulty rows",
        ),
        Panel("Told", "Chains and quotes.", (published("data[.].*"),), "ops"),
        Panel(
            "Cboe",
            "Time of its answers.",
            quantiles("openbell_external_request_seconds", 'api="cboe"'),
            "s",
            after_fault="needs the exchange; tests ask the simulator",
        ),
    ),
)

PARTS: Final = (PAYMENTS, BROKERAGE, ALERTS, DETECTION, DATA)
