"""What became of mails, and addresses that get none any more.

Revision ID: 0012
"""

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute(
        """
        create table mail_events (
            provider text not null,
            event_id text not null,
            kind text not null,
            address_hash text not null,
            delivery_id uuid,
            detail text not null,
            at timestamptz not null,
            received_at timestamptz not null,
            primary key (provider, event_id)
        )"""
    )
    op.execute("create index mail_events_age on mail_events (received_at)")
    op.execute(
        """
        create table suppressions (
            address_hash text primary key,
            kind text not null,
            detail text not null,
            provider text not null,
            at timestamptz not null
        )"""
    )
    op.execute("create index suppressions_newest on suppressions (at desc, address_hash)")
    op.execute("create index channels_of_address on channels (lower(target)) where channel = 'email'")
    for table in ("deliveries", "notice_deliveries"):
        op.execute(
            f"alter table {table} add column delivered_at timestamptz,"
            " add column opened_at timestamptz, add column clicked_at timestamptz"
        )


def downgrade() -> None:
    """Drop."""
    for table in ("deliveries", "notice_deliveries"):
        op.execute(f"alter table {table} drop column delivered_at, drop column opened_at, drop column clicked_at")
    op.execute("drop index channels_of_address")
    op.execute("drop table suppressions")
    op.execute("drop table mail_events")
