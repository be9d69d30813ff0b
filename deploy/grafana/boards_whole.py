"""Dashboards of what all services have in common: the overview, messaging, the gateway, Postgres, Kafka."""

from typing import Final

from deploy.grafana.boards_servers import KAFKA_SERVER, POSTGRES_SERVER
from deploy.grafana.panel import CHANNELS, Board, Panel, quantile, quantiles, rate

_ERRORS: Final = (
    'sum(rate(openbell_http_requests_total{service="api",status=~"5.."}[$__rate_interval])) '
    '/ sum(rate(openbell_http_requests_total{service="api"}[$__rate_interval])) '
    'or 0 * sum(rate(openbell_http_requests_total{service="api"}[$__rate_interval]))'
)
_LATE: Final = (
    f'1 - sum(rate(openbell_work_age_seconds_bucket{{kind=~"{CHANNELS}",status="done",le="30.0"}}[$__rate_interval])) '
    f'/ sum(rate(openbell_work_age_seconds_count{{kind=~"{CHANNELS}",status="done"}}[$__rate_interval]))'
)
_AGE: Final = "openbell_work_age_seconds"
_DELIVERED: Final = f'kind=~"{CHANNELS}",status="done"'

OVERVIEW: Final = Board(
    "openbell-overview",
    "Openbell: overview",
    "What we promise, and the four golden signals.",
    (
        Panel(
            "Gateway: answers that failed",
            "The promise: at most 0.1% over 30 days.",
            ((_ERRORS, "5xx"),),
            "percentunit",
        ),
        Panel("Alerts later than 30 s", "The promise: at most 1% over 30 days.", ((_LATE, "late"),), "percentunit"),
        Panel(
            "Targets that answer",
            "Of those that Prometheus asks.",
            (("sum(up)", "up"), ("count(up)", "all")),
            stat=True,
        ),
        Panel(
            "Fuses open",
            "Consumers that stand still.",
            (("sum(max by (consumer) (openbell_consumer_fuse_open))", "open"),),
            stat=True,
        ),
        Panel(
            "Traffic",
            "Requests, events and effects, a second.",
            (
                (rate("openbell_http_requests_total", "service"), "requests {{service}}"),
                (rate("openbell_consumer_events_total", "consumer", 'outcome="done"'), "events {{consumer}}"),
                (rate("openbell_work_settled_total", "kind"), "effects {{kind}}"),
            ),
            "ops",
        ),
        Panel(
            "Latency of the gateway",
            "From the request line to the last byte.",
            quantiles("openbell_http_request_duration_seconds", 'service="api"'),
            "s",
        ),
        Panel(
            "Latency of alerts", "From the row of a delivery to the channel's yes.", quantiles(_AGE, _DELIVERED), "s"
        ),
        Panel(
            "Age of events at their effect",
            "From Kafka to the commit, p99.",
            ((quantile(0.99, "openbell_consumer_event_age_seconds", "consumer"), "{{consumer}}"),),
            "s",
        ),
        Panel(
            "Errors",
            "Events parked or retried in vain, effects that failed.",
            (
                ("sum by (consumer) (max by (consumer, status) (openbell_failed_jobs))", "failed jobs {{consumer}}"),
                (rate("openbell_work_settled_total", "kind", 'status="failed"'), "failed effects {{kind}}"),
            ),
        ),
        Panel(
            "Saturation",
            "Processor time of each process (of one core), and the share of pools in use.",
            (
                ("sum by (instance) (rate(process_cpu_seconds_total[$__rate_interval]))", "cpu {{instance}}"),
                (
                    "sum by (service) (openbell_database_pool_used) / sum by (service) (openbell_database_pool_size)",
                    "pool {{service}}",
                ),
            ),
            "percentunit",
        ),
        Panel("Memory", "Resident.", (("sum by (instance) (process_resident_memory_bytes)", "{{instance}}"),), "bytes"),
        Panel(
            "Event loops",
            "How late they are, p99.",
            ((quantile(0.99, "openbell_event_loop_lag_seconds", "service"), "{{service}}"),),
            "s",
        ),
    ),
)
MESSAGING: Final = Board(
    "openbell-messaging",
    "Openbell: messaging",
    "Consumers, failed jobs, retries and outboxes.",
    (
        Panel(
            "Lag in seconds",
            "Age of the oldest record not settled.",
            (("max by (consumer) (openbell_consumer_lag_seconds)", "{{consumer}}"),),
            "s",
        ),
        Panel(
            "Lag in records",
            "Not settled yet.",
            (("sum by (consumer) (openbell_consumer_lag_records)", "{{consumer}}"),),
        ),
        Panel(
            "Events by outcome",
            "Done, duplicate, skipped, parked, behind.",
            ((rate("openbell_consumer_events_total", "consumer, outcome"), "{{consumer}} {{outcome}}"),),
            "ops",
        ),
        Panel(
            "Time of a batch",
            "Fetched to settled, p99.",
            ((quantile(0.99, "openbell_consumer_batch_seconds", "consumer"), "{{consumer}}"),),
            "s",
        ),
        Panel(
            "Failed jobs",
            "Rows that wait, are held, are dead.",
            (("max by (consumer, status) (openbell_failed_jobs)", "{{consumer}} {{status}}"),),
        ),
        Panel(
            "Oldest failed job",
            "Its age.",
            (("max by (consumer, status) (openbell_failed_jobs_oldest_seconds)", "{{consumer}} {{status}}"),),
            "s",
        ),
        Panel("Fuses", "1: stands still.", (("max by (consumer) (openbell_consumer_fuse_open)", "{{consumer}}"),)),
        Panel(
            "Retries",
            "Attempts at waiting rows.",
            ((rate("openbell_retries_total", "consumer, outcome"), "{{consumer}} {{outcome}}"),),
            "ops",
        ),
        Panel(
            "Transactions run again",
            "Deadlocks, lost connections.",
            ((rate("openbell_consumer_reruns_total", "consumer"), "{{consumer}}"),),
            "ops",
            after_fault="counted from the first deadlock or lost connection on",
        ),
        Panel(
            "Outbox: age",
            "Of its oldest row.",
            (("max by (service) (openbell_outbox_age_seconds)", "{{service}}"),),
            "s",
        ),
        Panel("Outbox: rows", "That wait for Kafka.", (("max by (service) (openbell_outbox_rows)", "{{service}}"),)),
        Panel(
            "Outbox: carried",
            "Acknowledged by Kafka.",
            ((rate("openbell_outbox_relayed_total", "service"), "{{service}}"),),
            "ops",
        ),
        Panel("Committed events", "By type.", ((rate("openbell_events_published_total", "type"), "{{type}}"),), "ops"),
    ),
)

GATEWAY: Final = Board(
    "openbell-gateway",
    "Openbell: gateway",
    "Requests, sockets, upstreams.",
    (
        Panel(
            "Requests by status",
            "A second.",
            ((rate("openbell_http_requests_total", "status", 'service="api"'), "{{status}}"),),
            "ops",
        ),
        Panel("Failed", "Share of 5xx.", ((_ERRORS, "5xx"),), "percentunit"),
        Panel(
            "Latency",
            "From the request line to the last byte.",
            quantiles("openbell_http_request_duration_seconds", 'service="api"'),
            "s",
        ),
        Panel(
            "Slowest routes",
            "p99.",
            (
                (
                    "topk(10, "
                    + quantile(0.99, "openbell_http_request_duration_seconds", "route", 'service="api"')
                    + ")",
                    "{{route}}",
                ),
            ),
            "s",
        ),
        Panel(
            "Busiest routes",
            "A second.",
            (
                (
                    "topk(10, " + rate("openbell_http_requests_total", "method, route", 'service="api"') + ")",
                    "{{method}} {{route}}",
                ),
            ),
            "ops",
        ),
        Panel(
            "Refused",
            "401, 403, 409, 422, 429.",
            ((rate("openbell_http_requests_total", "status", 'service="api",status=~"4.."'), "{{status}}"),),
            "ops",
        ),
        Panel(
            "Services behind",
            "Requests that each answers, by status.",
            ((rate("openbell_http_requests_total", "service, status", 'service!="api"'), "{{service}} {{status}}"),),
            "ops",
        ),
        Panel(
            "Breakers",
            "1: nothing is sent there. Services in the gateway's own process have none.",
            (("max by (target) (openbell_breaker_open)", "{{target}}"),),
        ),
        Panel("WebSockets", "Open now.", (("sum(openbell_realtime_sockets)", "open"),), stat=True),
        Panel(
            "Messages to WebSockets",
            "A second.",
            (("sum(rate(openbell_realtime_messages_sent_total[$__rate_interval]))", "sent"),),
            "ops",
        ),
        Panel(
            "WebSockets closed",
            "By reason.",
            ((rate("openbell_realtime_closed_total", "reason"), "{{reason}}"),),
            "ops",
        ),
    ),
)
POSTGRES: Final = Board(
    "openbell-postgres",
    "Openbell: Postgres",
    "As the services see it; then, on a cluster, as it sees itself.",
    (
        Panel(
            "Connections",
            "Of each role, all its replicas.",
            (
                ("max by (service) (openbell_postgres_connections)", "{{service}}"),
                ("max(openbell_postgres_connections_all)", "everybody"),
                ("max(openbell_postgres_connections_max)", "allowed"),
            ),
        ),
        Panel(
            "Connections taken",
            "Of those allowed.",
            (("max(openbell_postgres_connections_all) / max(openbell_postgres_connections_max)", "taken"),),
            "percentunit",
            stat=True,
        ),
        Panel(
            "Oldest transaction",
            "That holds xmin back.",
            (("max by (service) (openbell_postgres_oldest_transaction_seconds)", "{{service}}"),),
            "s",
        ),
        Panel("Size of the database", "On disk.", (("max(openbell_postgres_database_bytes)", "bytes"),), "bytes"),
        Panel(
            "Pools in use",
            "Connections out, of those they may open.",
            (
                ("sum by (service) (openbell_database_pool_used)", "{{service}}"),
                ("sum by (service) (openbell_database_pool_size)", "{{service}} may"),
            ),
        ),
        Panel(
            "Waiting for a connection",
            "Of the service's own pool.",
            (("sum by (service) (openbell_database_pool_waiting)", "{{service}}"),),
        ),
        Panel(
            "Transactions run again",
            "Deadlocks, lost connections.",
            ((rate("openbell_consumer_reruns_total", "consumer"), "{{consumer}}"),),
            "ops",
            after_fault="counted from the first deadlock or lost connection on",
        ),
        Panel(
            "Jobs by the clock",
            "By how they ended.",
            ((rate("openbell_job_runs_total", "job_name, outcome"), "{{job_name}} {{outcome}}"),),
            "ops",
        ),
        *POSTGRES_SERVER,
    ),
)
KAFKA: Final = Board(
    "openbell-kafka",
    "Openbell: Kafka",
    "As the services see it: what they carry there and have not read; then, on a cluster, as it sees itself.",
    (
        Panel(
            "Carried to Kafka",
            "Acknowledged, a second.",
            ((rate("openbell_outbox_relayed_total", "service"), "{{service}}"),),
            "ops",
        ),
        Panel(
            "Not acknowledged",
            "Sends that failed and were begun again.",
            ((rate("openbell_outbox_relay_errors_total", "service"), "{{service}}"),),
            "ops",
            after_fault="counted from the first failed send on",
        ),
        Panel(
            "Waiting for Kafka",
            "Age of the oldest row.",
            (("max by (service) (openbell_outbox_age_seconds)", "{{service}}"),),
            "s",
        ),
        Panel(
            "Lag by topic",
            "Records that some consumer has not settled.",
            (("sum by (topic, consumer) (openbell_consumer_lag_records)", "{{topic}} {{consumer}}"),),
        ),
        Panel(
            "Lag by partition",
            "The ten largest.",
            (
                (
                    "topk(10, sum by (topic, partition, consumer) (openbell_consumer_lag_records))",
                    "{{topic}}/{{partition}} {{consumer}}",
                ),
            ),
        ),
        Panel(
            "Records settled",
            "By consumer.",
            ((rate("openbell_consumer_events_total", "consumer"), "{{consumer}}"),),
            "ops",
        ),
        Panel("Produce to effect", "p50, p90, p99.", quantiles("openbell_consumer_event_age_seconds"), "s"),
        Panel(
            "Partitions held",
            "By each process.",
            (("count by (instance) (openbell_consumer_lag_records)", "{{instance}}"),),
        ),
        *KAFKA_SERVER,
    ),
)

WHOLE: Final = (OVERVIEW, MESSAGING, GATEWAY, POSTGRES, KAFKA)
