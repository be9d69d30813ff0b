"""Engagement, apart from delivery: when a link about an alert or a notice was followed, when it was acknowledged.

Revision ID: 0013
"""

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    for table in ("alerts", "notices"):
        op.execute(f"alter table {table} add column clicked_at timestamptz, add column acknowledged_at timestamptz")


def downgrade() -> None:
    """Drop."""
    for table in ("alerts", "notices"):
        op.execute(f"alter table {table} drop column clicked_at, drop column acknowledged_at")
