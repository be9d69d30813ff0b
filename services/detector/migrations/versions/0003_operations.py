"""Runs of operations; answers to requests that may be sent again.

Revision ID: 0003
"""

from alembic import op

from shared import idempotency
from shared.messaging.ops import runs

revision = "0003"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    runs.create_table(op)
    idempotency.create(op)


def downgrade() -> None:
    """Drop."""
    idempotency.drop(op)
    runs.drop_table(op)
