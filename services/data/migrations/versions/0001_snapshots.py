"""Messaging and job tables, and the last good answer of each symbol and source."""

from alembic import op

from shared import schedule
from shared.messaging import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    tables.create(op)
    schedule.create_tables(op)
    op.execute(
        """
        create table snapshots (
            symbol text not null,
            source text not null check (source in ('cboe', 'replay', 'simulator')),
            as_of timestamptz,
            session date,
            simulated boolean,
            chain bytea,
            etag text,
            last_modified text,
            recorded_at timestamptz,
            checked_at timestamptz not null,
            failures integer not null default 0,
            last_error text,
            primary key (symbol, source),
            check (num_nulls(as_of, session, simulated, chain, recorded_at) in (0, 5))
        )
        """
    )
    op.execute("alter table snapshots alter column chain set storage external")


def downgrade() -> None:
    """Drop."""
    op.execute("drop table snapshots")
    schedule.drop_tables(op)
    tables.drop(op)
