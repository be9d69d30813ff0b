"""What is due is found by its channel: each channel's worker looks for its own, however much waits for another.

Revision ID: 0017
"""

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create anew."""
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"drop index {table}_due")
        op.execute(f"create index {table}_due on {table} (channel, due_at, id) where status = 'pending'")
    op.execute("drop index deliveries_turn")
    op.execute("create index deliveries_turn on deliveries (channel, bulk, due_at, id) where status = 'pending'")


def downgrade() -> None:
    """Go back."""
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"drop index {table}_due")
        op.execute(f"create index {table}_due on {table} (due_at, id) where status = 'pending'")
    op.execute("drop index deliveries_turn")
    op.execute("create index deliveries_turn on deliveries (bulk, due_at, id) where status = 'pending'")
