"""The symbols that users watch, as the gateway tells them.

Revision ID: 0002
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute("create table watched (symbol text not null, user_id uuid not null, primary key (symbol, user_id))")


def downgrade() -> None:
    """Drop."""
    op.execute("drop table watched")
