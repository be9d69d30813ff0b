"""Rules over any kind of event, with an expression, and the events of the last weeks to try them on.

Revision ID: 0010
"""

from datetime import UTC, datetime

from alembic import op

from shared.months import AHEAD, create_month, month

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute("alter table rules add column kind text not null default 'activity', add column expression jsonb")
    op.execute("create index rules_over on rules (kind, user_id, rule_id) where kind <> 'activity'")
    op.execute("alter table notices add column rule_id uuid")
    op.execute(
        """
        create table kept_events (
            id uuid not null,
            kind text not null,
            user_id uuid,
            symbol text,
            session date,
            at timestamptz not null,
            fields jsonb not null,
            primary key (id, at)
        ) partition by range (at)"""
    )
    op.execute("create index kept_events_of_user on kept_events (kind, user_id, at, id)")
    op.execute("create index kept_events_of_symbol on kept_events (kind, symbol, at, id) where symbol is not null")
    op.execute("create table kept_events_default partition of kept_events default")
    today = datetime.now(UTC).date()
    for ahead in range(-1, AHEAD + 1):
        op.execute(create_month("kept_events", month(today, ahead)))


def downgrade() -> None:
    """Drop. Rules over anything but activity, and expressions, are lost: an older version would misread them."""
    op.execute("drop table kept_events")
    op.execute("alter table notices drop column rule_id")
    op.execute("drop index rules_over")
    op.execute("delete from rules where kind <> 'activity' or expression is not null")
    op.execute("alter table rules drop column expression, drop column kind")
