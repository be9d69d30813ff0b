"""Quotes of the sessions, one a minute, for charts.

Revision ID: 0014
"""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute(
        """
        create table quotes (
            symbol text not null,
            minute timestamptz not null,
            as_of timestamptz not null,
            price float8 not null,
            simulated boolean not null,
            primary key (symbol, minute)
        )"""
    )
    op.execute("create index quotes_age on quotes (minute)")


def downgrade() -> None:
    """Drop."""
    op.execute("drop table quotes")
