"""What Postgres and Kafka tell of themselves, by their operators' exporters: panels of the two boards, on a cluster.

CloudNativePG's instances answer at 9187, Kafka's by Strimzi's metrics reporter at 9404 (deploy/k8s/base/monitors.yaml).
"""

from collections.abc import Sequence
from typing import Final

from deploy.grafana.panel import Panel

_CNPG: Final = "CloudNativePG's exporter"
_STRIMZI: Final = "Strimzi's metrics reporter"
_RATE: Final = "[$__rate_interval]"

POSTGRES_SERVER: Final[Sequence[Panel]] = (
    Panel(
        "Instances",
        "1: it answers its exporter.",
        (("min by (pod) (cnpg_collector_up)", "{{pod}}"),),
        on_cluster=_CNPG,
    ),
    Panel(
        "Standbys behind",
        "Seconds, of what is replayed.",
        (("max by (pod) (cnpg_pg_replication_lag)", "{{pod}}"),),
        "s",
        on_cluster=_CNPG,
    ),
    Panel(
        "Since the last WAL was archived",
        "Of the primary; a point in time can be brought back up to there.",
        (("max(cnpg_pg_stat_archiver_seconds_since_last_archival)", "ago"),),
        "s",
        on_cluster=_CNPG,
    ),
    Panel(
        "Commits and rollbacks",
        "A second, of our database.",
        (
            (f'sum(rate(cnpg_pg_stat_database_xact_commit{{datname="openbell"}}{_RATE}))', "committed"),
            (f'sum(rate(cnpg_pg_stat_database_xact_rollback{{datname="openbell"}}{_RATE}))', "rolled back"),
        ),
        "ops",
        on_cluster=_CNPG,
    ),
    Panel(
        "WAL held by slots",
        "For whoever reads them.",
        (("max by (slot_name) (cnpg_pg_replication_slots_pg_wal_lsn_diff)", "{{slot_name}}"),),
        "bytes",
        on_cluster=_CNPG,
    ),
    Panel(
        "Age of the oldest transaction id",
        "At 2 billion Postgres stops; autovacuum begins at 200 million.",
        (("max by (datname) (cnpg_pg_database_xid_age)", "{{datname}}"),),
        on_cluster=_CNPG,
    ),
)
KAFKA_SERVER: Final[Sequence[Panel]] = (
    Panel(
        "Partitions that lack replicas",
        "0, always; and those without a leader.",
        (
            ("sum by (pod) (kafka_server_replicamanager_underreplicatedpartitions)", "{{pod}} behind"),
            ("max(kafka_controller_kafkacontroller_offlinepartitionscount)", "without a leader"),
        ),
        on_cluster=_STRIMZI,
    ),
    Panel(
        "Controllers in charge",
        "1, always.",
        (("sum(kafka_controller_kafkacontroller_activecontrollercount)", "active"),),
        stat=True,
        on_cluster=_STRIMZI,
    ),
    Panel(
        "Partitions of each broker",
        "As leader, and in all.",
        (
            ("sum by (pod) (kafka_server_replicamanager_leadercount)", "{{pod}} leads"),
            ("sum by (pod) (kafka_server_replicamanager_partitioncount)", "{{pod}} has"),
        ),
        on_cluster=_STRIMZI,
    ),
)
