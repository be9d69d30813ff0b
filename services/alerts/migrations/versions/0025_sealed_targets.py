"""Targets of channels are kept sealed. A sealed row's `target` is empty; addresses stay readable.

Code of 0024 reads `target` alone. So where channels are in use, nothing is sealed for a day, in which the old replicas
go (docs/adr/0010-sealed-targets.md); where none are, all is sealed from the first.

Revision ID: 0025
"""

from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create. `sealing` is one row: when sealing begins (null: it has), and the key of lanes, sealed too."""
    op.execute(
        """
        alter table channels add column key_id text, add column wrapped bytea, add column body bytea,
            add column shown text, add check (num_nonnulls(key_id, wrapped, body, shown) in (0, 4))"""
    )
    op.execute(
        "create index channels_readable on channels (user_id, channel, lane) where target <> '' and channel <> 'email'"
    )
    op.execute(
        """
        create table sealing (
            only_one boolean primary key default true check (only_one),
            starts_at timestamptz,
            key_id text,
            wrapped bytea,
            body bytea,
            check (num_nonnulls(key_id, wrapped, body) in (0, 3))
        )"""
    )
    op.execute(
        """
        insert into sealing (starts_at)
        select case when exists (select from channels where channel <> 'email') then now() + interval '1 day' end"""
    )


def downgrade() -> None:
    """Drop. What is sealed cannot be opened here: those channels go, and their users set them again."""
    op.execute("delete from channels where target = ''")
    op.execute("drop table sealing")
    op.execute("drop index channels_readable")
    op.execute(
        """
        alter table channels drop column key_id, drop column wrapped, drop column body, drop column shown"""
    )
