"""When the period begins that an invoice pays for.

Revision ID: 0007
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add. Rows of before say nothing of it until their invoice is fetched again."""
    op.execute("alter table invoice_payments add column period_start timestamptz")


def downgrade() -> None:
    """Drop."""
    op.execute("alter table invoice_payments drop column period_start")
