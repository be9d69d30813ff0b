"""Pauses that all replicas keep, and which of its alert's notifications a delivery is.

Revision ID: 0002
"""

from alembic import op

from shared import work

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    work.create_pauses(op)
    op.execute("alter table deliveries add column ring integer not null default 0")


def downgrade() -> None:
    """Drop."""
    op.execute("alter table deliveries drop column ring")
    op.execute("drop table work_pauses")
