"""Mails that do not arrive are found by their delivery: what comes back before its taking was recorded.

Revision ID: 0026
"""

from alembic import op

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add; events that are there were acted on when they came."""
    op.execute("alter table mail_events add column lost boolean not null default false")
    op.execute("create index mail_events_lost on mail_events (delivery_id) where lost")


def downgrade() -> None:
    """Take back."""
    op.execute("drop index mail_events_lost")
    op.execute("alter table mail_events drop column lost")
