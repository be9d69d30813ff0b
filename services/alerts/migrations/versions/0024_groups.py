"""Groups: what rings together is told in one message.

Revision ID: 0024
"""

from alembic import op

from shared import work

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create. A group has one bundle at most that is still being filled; a bundle is one message, or none."""
    op.execute("alter table preferences add column groupings jsonb not null default '[]'")
    op.execute(
        """
        create table groups (
            id uuid primary key,
            user_id uuid not null,
            kind text not null,
            key text not null,
            bundles integer not null default 0,
            bundle_id uuid,
            flushed_at timestamptz,
            touched_at timestamptz not null
        )"""
    )
    op.execute("create index groups_age on groups (touched_at)")
    op.execute(
        f"""
        create table bundles (
            id uuid primary key,
            group_id uuid not null,
            number integer not null,
            user_id uuid not null,
            interval_s integer not null,
            repeat_s integer,
            again_of uuid,
            {work.COLUMNS}
        )"""
    )
    work.create_indexes(op, "bundles")
    op.execute("create index bundles_again on bundles (again_of) where again_of is not null")
    op.execute("create index bundles_age on bundles (settled_at)")
    op.execute(
        """
        create table bundle_items (
            bundle_id uuid not null,
            subject_id uuid not null,
            alert_id uuid,
            session date,
            ring integer,
            bulk boolean not null default false,
            notice_id uuid,
            joined_at timestamptz not null,
            primary key (bundle_id, subject_id)
        )"""
    )
    op.execute("create index bundle_items_age on bundle_items (joined_at)")


def downgrade() -> None:
    """Drop. What still waits in a group is not told; the alerts and notices themselves stay."""
    for table in ("bundle_items", "bundles", "groups"):
        op.execute(f"drop table {table}")
    op.execute("alter table preferences drop column groupings")
