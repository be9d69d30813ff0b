"""Notices: what a user is told besides alerts, and their deliveries.

Revision ID: 0007
"""

from alembic import op

from shared import work

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute(
        """
        create table notices (
            notice_id uuid primary key,
            user_id uuid not null,
            kind text not null,
            title text not null,
            lines text[] not null,
            at timestamptz not null,
            created_at timestamptz not null,
            opened_at timestamptz
        )"""
    )
    op.execute("create index notices_of_user on notices (user_id, created_at desc, notice_id desc)")
    op.execute("create index notices_age on notices (created_at)")
    op.execute(
        f"""
        create table notice_deliveries (
            id uuid primary key,
            notice_id uuid not null references notices (notice_id) on delete cascade,
            user_id uuid not null,
            channel text not null,
            provider_id text,
            {work.COLUMNS}
        )"""
    )
    work.create_indexes(op, "notice_deliveries")
    op.execute("create index notice_deliveries_of_notice on notice_deliveries (notice_id)")
    op.execute("create index notice_deliveries_of_channel on notice_deliveries (user_id, channel, status)")


def downgrade() -> None:
    """Drop."""
    op.execute("drop table notice_deliveries")
    op.execute("drop table notices")
