"""What is said to venues by account, whom a venue may ask to be left alone; and when it ended, for its retention.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add."""
    op.execute("alter table sendings add column account_id uuid references accounts")
    op.execute("update sendings set account_id = orders.account_id from orders where orders.id = sendings.order_id")
    op.execute("comment on column sendings.account_id is 'where its venue asks for a pause, all of the account waits'")
    op.execute("create index sendings_settled on sendings (settled_at) where settled_at is not null")


def downgrade() -> None:
    """Take away."""
    op.execute("drop index sendings_settled")
    op.execute("alter table sendings drop column account_id")
