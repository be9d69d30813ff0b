"""Quotes keep the regular session's price: options expire by it, and not by what is quoted after hours.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add; None where the quote's source does not tell it."""
    op.execute("alter table quotes add column close numeric")


def downgrade() -> None:
    """Drop. Options expire by the middle of the last quote."""
    op.execute("alter table quotes drop column close")
