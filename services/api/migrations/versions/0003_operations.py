"""Runs of operations.

Revision ID: 0003
"""

from alembic import op

from shared.messaging.ops import runs

revision = "0003"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    runs.create_table(op)


def downgrade() -> None:
    """Drop."""
    runs.drop_table(op)
