"""Runs of operations.

Revision ID: 0005
"""

from alembic import op

from shared.messaging.ops import runs_table

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    runs_table.create_table(op)


def downgrade() -> None:
    """Drop."""
    runs_table.drop_table(op)
