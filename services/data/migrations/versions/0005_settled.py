"""An index of failed jobs that are settled, for their retention.

Revision ID: 0005
"""

from alembic import op

from shared.messaging import tables

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    tables.add_settled(op)


def downgrade() -> None:
    """Drop."""
    tables.drop_settled(op)
