"""A channel may have several targets, of kinds that the contract names.

Revision ID: 0008
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Widen the key; the kinds are checked where they come in."""
    op.execute("alter table channels drop constraint channels_channel_check")
    op.execute("alter table channels drop constraint channels_pkey")
    op.execute("alter table channels add primary key (user_id, channel, lane)")


def downgrade() -> None:
    """Narrow it: kinds that were not known go, and of several targets the newest stays."""
    op.execute("delete from channels where channel not in ('discord', 'email')")
    op.execute(
        """
        delete from channels older using channels newer
        where newer.user_id = older.user_id and newer.channel = older.channel
          and (newer.updated_at, newer.lane) > (older.updated_at, older.lane)"""
    )
    op.execute("alter table channels drop constraint channels_pkey")
    op.execute("alter table channels add primary key (user_id, channel)")
    op.execute("alter table channels add constraint channels_channel_check check (channel in ('discord', 'email'))")
