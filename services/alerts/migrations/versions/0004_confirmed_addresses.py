"""Addresses are confirmed by their readers.

Those that were in use stop until they are: nothing shows that they belong to who gave them.

Revision ID: 0003
"""

from alembic import op

from shared import work

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute("alter table channels add column confirmed_at timestamptz")
    op.execute("update channels set confirmed_at = created_at where channel <> 'email'")
    op.execute(
        """
        update channels set enabled = false, reason = 'not confirmed: ask for the confirmation mail'
        where channel = 'email' and enabled"""
    )
    op.execute("alter table channels add check (confirmed_at is not null or not enabled)")
    op.execute(
        f"""
        create table confirmations (
            id uuid primary key,
            user_id uuid not null,
            {work.COLUMNS}
        )"""
    )
    work.create_indexes(op, "confirmations")
    op.execute("create index confirmations_of_user on confirmations (user_id, created_at)")
    op.execute("create index confirmations_of_lane on confirmations (lane, created_at)")


def downgrade() -> None:
    """Drop. Channels stay as they are; who sets one again enables it."""
    op.execute("drop table confirmations")
    op.execute("alter table channels drop column confirmed_at")
