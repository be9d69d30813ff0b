"""Silences: what a user is not told for a while.

Revision ID: 0016
"""

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create. What a column does not name, it does not narrow."""
    op.execute(
        """
        create table silences (
            silence_id uuid primary key,
            user_id uuid not null,
            kind text,
            symbol text,
            rule_id uuid,
            critical boolean,
            starts_at timestamptz not null,
            ends_at timestamptz not null,
            author text not null,
            comment text not null,
            created_at timestamptz not null
        )"""
    )
    op.execute("create index silences_of_user on silences (user_id, ends_at)")


def downgrade() -> None:
    """Drop."""
    op.execute("drop table silences")
