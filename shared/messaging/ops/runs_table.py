"""The table of `shared.messaging.ops.runs`. Never edit what was shipped: add a function and a migration for it."""

from datetime import datetime
from typing import Final, Protocol

from shared import retention

_CREATE: Final = (
    """
    create table ops_runs (
        id uuid primary key,
        kind text not null check (kind in ('retry', 'discard', 'replay')),
        consumer text,
        request jsonb not null,
        rows uuid[] not null,
        progress jsonb not null,
        counts jsonb not null,
        status text not null check (status in ('queued', 'running', 'done', 'failed', 'cancelled')),
        cancel boolean not null default false,
        error text,
        actor text not null,
        request_id text,
        token uuid,
        runner text,
        lease_until timestamptz,
        created_at timestamptz not null,
        started_at timestamptz,
        finished_at timestamptz
    )
    """,
    """
    create unique index ops_runs_one_replay on ops_runs (consumer)
        where kind = 'replay' and status in ('queued', 'running')
    """,
    "create index ops_runs_open on ops_runs (created_at) where status in ('queued', 'running')",
)
_FORGET: Final = retention.slice_of("ops_runs", "finished_at < :before")


class Operations(Protocol):
    """The part of `alembic.op` used here."""

    def execute(self, sqltext: str) -> None:
        """Run one statement."""
        ...


def create_table(op: Operations) -> None:
    """Create `ops_runs`."""
    for statement in _CREATE:
        op.execute(statement)


def drop_table(op: Operations) -> None:
    """Drop it."""
    op.execute("drop table ops_runs")


async def forget(transaction: retention.Transaction, before: datetime) -> int:
    """Delete runs that ended before that time; return how many."""
    return await retention.forget(transaction, _FORGET, before=before)
