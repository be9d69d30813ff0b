"""Messaging and job tables; activity, the leaderboard and what it is made of, last volumes."""

from alembic import op

from shared import schedule
from shared.messaging import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

CREATE = (
    """
    create table snapshots (
        symbol text primary key,
        session date not null,
        as_of timestamptz not null,
        contracts text not null,
        volumes bytea not null
    ) with (fillfactor = 70)
    """,
    "comment on column snapshots.contracts is 'OCC symbols with volume in the session, a line each'",
    "comment on column snapshots.volumes is 'their volumes, little-endian 64 bit integers'",
    """
    create table activity (
        session date not null,
        contract text not null,
        symbol text not null,
        as_of timestamptz not null,
        first_as_of timestamptz not null,
        underlying_usd numeric,
        source text not null,
        simulated boolean not null,
        score double precision not null,
        best_score double precision not null,
        detail jsonb not null,
        primary key (session, contract)
    ) with (fillfactor = 80)
    """,
    "create index activity_symbol on activity (symbol, session desc)",
    """
    create table scans (
        id bigint generated always as identity primary key,
        session date not null,
        minute timestamptz not null,
        symbols text[] not null,
        counted boolean not null default false
    )
    """,
    "comment on column scans.minute is 'the end of the minute of as_of'",
    "create index scans_uncounted on scans (id) where not counted",
    "create index scans_minute on scans (session, minute)",
    """
    create table candidates (
        session date not null,
        minute timestamptz not null,
        contract text not null,
        symbol text not null,
        score double precision not null,
        premium_usd numeric not null,
        volume bigint not null,
        open_interest bigint not null,
        simulated boolean not null,
        primary key (session, minute, contract)
    )
    """,
    """
    create table boards (
        session date not null,
        minute timestamptz not null,
        symbols_scanned integer not null,
        entries jsonb not null,
        primary key (session, minute)
    )
    """,
)


def upgrade() -> None:
    """Create."""
    tables.create(op)
    schedule.create_tables(op)
    for statement in CREATE:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    for table in ("boards", "candidates", "scans", "activity", "snapshots"):
        op.execute(f"drop table {table}")
    schedule.drop_tables(op)
    tables.drop(op)
