"""Runs of operations; answers to requests that may be sent again.

Revision ID: 0003
"""

from alembic import op

from shared import idempotency
from shared.messaging.ops import runs_table

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    runs_table.create_table(op)
    idempotency.create(op)


def downgrade() -> None:
    """Drop."""
    idempotency.drop(op)
    runs_table.drop_table(op)
