"""A fan-out is done in parts, each a row of its own: several pages at once, by one replica or by several.

Revision ID: 0027
"""

from alembic import op

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add; a fan-out that is under way is the only part of itself."""
    op.execute(
        """
        alter table fan_outs
            add column part integer not null default 0,
            add column parts integer not null default 1"""
    )


def downgrade() -> None:
    """Take back. Each part that is left looks at everybody; what is there already is no change."""
    op.execute("alter table fan_outs drop column part, drop column parts")
