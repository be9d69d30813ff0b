"""Offsets say which Kafka they belong to."""

from alembic import op

from shared.messaging import tables

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    tables.add_cluster(op)


def downgrade() -> None:
    """Drop it."""
    tables.drop_cluster(op)
