"""Notices name the symbol that they are about, for silences.

Revision ID: 0020
"""

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add."""
    op.execute("alter table notices add column symbol text")


def downgrade() -> None:
    """Drop."""
    op.execute("alter table notices drop column symbol")
