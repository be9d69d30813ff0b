"""Channels that take turns: in what order, and why a delivery went to the next one.

Revision ID: 0021
"""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add. Nobody's channels take turns before they say so."""
    op.execute("alter table preferences add column turns jsonb not null default '[]'")
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} add column because text")


def downgrade() -> None:
    """Drop."""
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} drop column because")
    op.execute("alter table preferences drop column turns")
