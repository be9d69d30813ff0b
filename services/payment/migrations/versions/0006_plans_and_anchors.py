"""Plans that Stripe's prices name, found quickly; the day of the month that periods return to.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UP = (
    """
    create index stripe_objects_plans on stripe_objects (id)
        where kind = 'price' and body -> 'metadata' ->> 'openbell_plan' is not null""",
    "alter table subscriptions add column anchor_day smallint check (anchor_day between 1 and 31)",
    """
    comment on column subscriptions.anchor_day is
        'the day on which periods paid for by hand begin, in months that have it; null: not known'""",
)


def upgrade() -> None:
    """Create."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    op.execute("alter table subscriptions drop column anchor_day")
    op.execute("drop index stripe_objects_plans")
