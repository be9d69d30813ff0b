"""What users may use, as payment tells it.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute(
        """
        create table subscriptions (
            user_id uuid not null,
            subscription_id uuid not null,
            version bigint not null,
            plan text not null,
            status text not null,
            entitlements text[] not null,
            entitled_until timestamptz,
            primary key (user_id, subscription_id)
        )"""
    )


def downgrade() -> None:
    """Drop."""
    op.execute("drop table subscriptions")
