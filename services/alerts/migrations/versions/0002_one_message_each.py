"""Pauses that all replicas keep.

Revision ID: 0002
"""

from alembic import op

from shared import work

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    work.create_pauses(op)


def downgrade() -> None:
    """Drop."""
    op.execute("drop table work_pauses")
