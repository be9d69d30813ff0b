"""Inhibitions: what is not told while something of another kind fires, and the account that a notice is about.

Revision ID: 0023
"""

from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add. Notices from before are about no account that is known."""
    op.execute("alter table preferences add column inhibitions jsonb not null default '[]'")
    op.execute("alter table notices add column account_id uuid")


def downgrade() -> None:
    """Drop."""
    op.execute("alter table notices drop column account_id")
    op.execute("alter table preferences drop column inhibitions")
