"""The messaging tables of a service's schema, as its first migration makes them.

Never edit a shipped version: add a new function and call it from a new migration.

`inbox` is partitioned by the day of the event's time, so that old days are dropped, not deleted row by row; the
primary key holds within a day, and a redelivery carries the same time. Days are made by shared.messaging.inbox.
A record parks once; its digest stands in the key because a rebuilt Kafka gives old offsets to new records.
`headers` is MessagePack: an array of [name, value] in bytes, as shared.messaging.record packs them.
"""

from typing import Protocol


class Operations(Protocol):
    """The part of `alembic.op` used here."""

    def execute(self, sqltext: str) -> None:
        """Run one statement."""
        ...


_CREATE = (
    """
    create table inbox (
        consumer text not null,
        event_id uuid not null,
        day date not null,
        primary key (consumer, event_id, day)
    ) partition by range (day)
    """,
    """
    create table consumer_offsets (
        consumer text not null,
        topic text not null,
        partition integer not null,
        next_offset bigint not null,
        updated_at timestamptz not null default now(),
        primary key (consumer, topic, partition)
    ) with (fillfactor = 50)
    """,
    """
    create table outbox (
        id bigint generated always as identity primary key,
        topic text not null,
        key bytea,
        value bytea,
        headers bytea not null,
        created_at timestamptz not null default clock_timestamp()
    ) with (autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000)
    """,
    """
    create table failed_jobs (
        id uuid primary key default uuidv7(),
        consumer text not null,
        topic text not null,
        partition integer not null,
        record_offset bigint not null,
        key bytea,
        value bytea,
        headers bytea not null,
        record_time timestamptz,
        job_type text,
        event_id uuid,
        status text not null check (status in ('waiting', 'held', 'dead', 'resolved', 'discarded')),
        attempts integer not null default 0,
        due_at timestamptz,
        error_code text,
        error_message text,
        errors jsonb not null default '[]',
        fingerprint text,
        failed_at timestamptz not null default now(),
        updated_at timestamptz not null default now(),
        resolved_by text,
        resolution text,
        digest bytea not null generated always as (
            sha256(coalesce(key, '') || sha256('') || coalesce(value, '') || sha256('') || headers)
        ) stored,
        unique (consumer, topic, partition, record_offset, digest)
    )
    """,
    """
    create index failed_jobs_due on failed_jobs (consumer, due_at)
        where status = 'waiting' and due_at is not null
    """,
    """
    create index failed_jobs_fence on failed_jobs (consumer, topic, partition, key, record_offset)
        where status in ('waiting', 'held')
    """,
    "create index failed_jobs_open on failed_jobs (failed_at desc) where status in ('waiting', 'held', 'dead')",
    "create index failed_jobs_fingerprint on failed_jobs (fingerprint, status)",
)

_CLUSTER = "alter table consumer_offsets add column cluster text"  # which Kafka the offset is one of

_SETTLED = """
    create index failed_jobs_settled on failed_jobs (updated_at) where status in ('resolved', 'discarded')
"""

_DROP = ("failed_jobs", "outbox", "consumer_offsets", "inbox")


def create(op: Operations) -> None:
    """Create inbox, consumer_offsets, outbox and failed_jobs."""
    for statement in _CREATE:
        op.execute(statement)


def add_cluster(op: Operations) -> None:
    """Remember with each offset which Kafka it is one of."""
    op.execute(_CLUSTER)


def drop_cluster(op: Operations) -> None:
    """Undo `add_cluster`."""
    op.execute("alter table consumer_offsets drop column cluster")


def add_settled(op: Operations) -> None:
    """Let retention find what is settled without reading the whole table."""
    op.execute(_SETTLED)


def drop_settled(op: Operations) -> None:
    """Undo `add_settled`."""
    op.execute("drop index failed_jobs_settled")


def drop(op: Operations) -> None:
    """Drop them, with what they hold."""
    for table in _DROP:
        op.execute(f"drop table {table}")
