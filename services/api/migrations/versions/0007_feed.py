"""Users' feeds for WebSockets, and tickets that open one.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_CREATE = (
    """
    create table feed_heads (
        user_id uuid primary key,
        position bigint not null
    ) with (fillfactor = 50)
    """,
    """
    create table feed (
        user_id uuid not null,
        position bigint not null,
        id uuid not null,
        type text not null,
        at timestamptz not null,
        body text not null,
        created_at timestamptz not null,
        primary key (user_id, position)
    )
    """,
    "create index feed_created_at on feed (created_at)",
    # Losing it in a crash only makes callers ask for another.
    """
    create unlogged table realtime_tickets (
        digest bytea primary key,
        user_id uuid not null,
        role text not null,
        key_id uuid,
        ends_at timestamptz,
        until timestamptz not null
    )
    """,
)


def upgrade() -> None:
    """Create."""
    for statement in _CREATE:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    for table in ("realtime_tickets", "feed", "feed_heads"):
        op.execute(f"drop table {table}")
