"""Deliveries carry the trace of what wrote them on to what performs them.

Revision ID: 0019
"""

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

_TABLES = ("deliveries", "notice_deliveries")


def upgrade() -> None:
    """Add the column; shared.telemetry.remember tells a transaction what its default is."""
    for table in _TABLES:
        op.execute(
            f"alter table {table} add column traceparent text "
            "default nullif(current_setting('openbell.traceparent', true), '')"
        )


def downgrade() -> None:
    """Drop."""
    for table in _TABLES:
        op.execute(f"alter table {table} drop column traceparent")
