"""Escalations: what nobody acknowledges in time goes to the channel whose turn is next.

Revision ID: 0022
"""

from alembic import op

from shared import work

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create. Nothing is handed on before its user asks for it; a row is of an alert's ring or of a notice."""
    op.execute("alter table preferences add column escalations jsonb not null default '[]'")
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} add column escalated boolean not null default false")
    op.execute(
        f"""
        create table escalations (
            id uuid primary key,
            user_id uuid not null,
            channel text not null,
            after_minutes integer not null,
            alert_id uuid,
            session date,
            ring integer,
            notice_id uuid,
            {work.COLUMNS}
        )"""
    )
    work.create_indexes(op, "escalations")
    op.execute("create index escalations_age on escalations (settled_at)")


def downgrade() -> None:
    """Drop. What waits for somebody to acknowledge it goes no further."""
    op.execute("drop table escalations")
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} drop column escalated")
    op.execute("alter table preferences drop column escalations")
