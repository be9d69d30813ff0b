"""Stripe: webhooks as they came, what waits to be asked for, and what Stripe said.

Revision ID: 0002
"""

from datetime import UTC, datetime

from alembic import op

from shared import work
from shared.months import AHEAD, create_month, month

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table webhooks (
        event_id text not null,
        created timestamptz not null,
        type text not null,
        object_kind text,
        object_id text,
        customer text,
        livemode boolean not null,
        swept boolean not null,
        body bytea not null,
        received_at timestamptz not null,
        primary key (event_id, created)
    ) partition by range (created)""",
    "comment on column webhooks.swept is 'we asked for it, for it did not come by itself'",
    f"""
    create table refreshes (
        id uuid primary key,
        kind text not null,
        object_id text not null,
        wanted bigint not null,
        hinted boolean not null,
        {work.COLUMNS},
        unique (kind, object_id)
    )""",
    "comment on column refreshes.wanted is 'how many hints have named it; a fetch answers those before it began'",
    "comment on column refreshes.hinted is 'an event named it; the sweep alone does not'",
    """
    create table stripe_objects (
        kind text not null,
        id text not null,
        customer text,
        user_id uuid,
        deleted boolean not null,
        body jsonb,
        fetched_at timestamptz not null,
        changed_at timestamptz not null,
        primary key (kind, id)
    )""",
    "create index stripe_objects_of_user on stripe_objects (user_id, kind) where user_id is not null",
)


def upgrade() -> None:
    """Create."""
    for statement in TABLES:
        op.execute(statement)
    work.create_indexes(op, "refreshes")
    op.execute("create table webhooks_default partition of webhooks default")
    today = datetime.now(UTC).date()
    for ahead in range(-1, AHEAD + 1):
        op.execute(create_month("webhooks", month(today, ahead)))


def downgrade() -> None:
    """Drop."""
    for table in ("stripe_objects", "refreshes", "webhooks"):
        op.execute(f"drop table {table}")
