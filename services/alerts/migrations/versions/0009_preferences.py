"""What users want to be told where and when; deliveries that wait for it or end by it.

Revision ID: 0009
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

WORK = "'pending', 'claimed', 'started', 'done', 'failed', 'unknown'"


def upgrade() -> None:
    """Create. An index by time serves the log, the caps, and all that the one it replaces did."""
    op.execute("alter table users add column timezone text")
    op.execute(
        """
        create table preferences (
            user_id uuid primary key,
            timezone text,
            locale text,
            quiet_start time,
            quiet_end time,
            choices jsonb not null,
            caps jsonb not null,
            updated_at timestamptz not null
        )"""
    )
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} add column planned_at timestamptz")
        op.execute(f"alter table {table} drop constraint {table}_status_check")
        op.execute(
            f"alter table {table} add constraint {table}_status_check"
            f" check (status in ({WORK}, 'suppressed', 'digested'))"
        )
    op.execute("drop index deliveries_of_user")
    op.execute("drop index notice_deliveries_of_channel")
    op.execute("create index deliveries_of_user on deliveries (user_id, created_at desc, id desc)")
    op.execute("create index notice_deliveries_of_user on notice_deliveries (user_id, created_at desc, id desc)")


def downgrade() -> None:
    """Drop; what was held back counts as failed."""
    op.execute("drop index deliveries_of_user")
    op.execute("drop index notice_deliveries_of_user")
    op.execute("create index deliveries_of_user on deliveries (user_id, channel, status)")
    op.execute("create index notice_deliveries_of_channel on notice_deliveries (user_id, channel, status)")
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"update {table} set status = 'failed' where status in ('suppressed', 'digested')")  # noqa: S608 - ours
        op.execute(f"alter table {table} drop constraint {table}_status_check")
        op.execute(f"alter table {table} add constraint {table}_status_check check (status in ({WORK}))")
        op.execute(f"alter table {table} drop column planned_at")
    op.execute("drop table preferences")
    op.execute("alter table users drop column timezone")
