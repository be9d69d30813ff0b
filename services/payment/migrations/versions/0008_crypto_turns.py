"""Told transactions take turns; a receipt remembers when its block was made.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add."""
    op.execute("alter table crypto_told add column looked_at timestamptz")
    op.execute("comment on column crypto_told.looked_at is 'when it was looked for last'")
    op.execute("alter table crypto_receipts add column mined_at timestamptz")
    op.execute("comment on column crypto_receipts.mined_at is 'the time of the block that it lies in now'")


def downgrade() -> None:
    """Drop."""
    op.execute("alter table crypto_receipts drop column mined_at")
    op.execute("alter table crypto_told drop column looked_at")
