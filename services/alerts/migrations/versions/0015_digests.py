"""Digests, who wants them, and what they are made of.

Revision ID: 0015
"""

from alembic import op

from shared import work

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table digest_plans (
        user_id uuid primary key,
        frequency text not null check (frequency in ('off', 'daily', 'weekly')),
        hour smallint not null check (hour between 0 and 23),
        weekday smallint not null check (weekday between 0 and 6),
        covered_until timestamptz,
        next_due_at timestamptz,
        check ((frequency = 'off') = (next_due_at is null)),
        check (covered_until is not null or frequency = 'off')
    )""",
    "create index digest_plans_due on digest_plans (next_due_at, user_id) where next_due_at is not null",
    f"""
    create table digests (
        id uuid primary key,
        user_id uuid not null,
        frequency text not null,
        since timestamptz not null,
        until timestamptz not null,
        sections jsonb,
        {work.COLUMNS}
    )""",
    "create index digests_age on digests (created_at)",
    """
    create table leaders (
        session date primary key,
        as_of timestamptz not null,
        entries jsonb not null
    )""",
    """
    create table trading (
        user_id uuid not null,
        quarter timestamptz not null,
        account_id uuid not null,
        symbol text not null,
        mode text,
        fills integer not null default 0,
        bought numeric not null default 0,
        sold numeric not null default 0,
        bought_for numeric not null default 0,
        sold_for numeric not null default 0,
        fees numeric not null default 0,
        realised numeric not null default 0,
        primary key (user_id, quarter, account_id, symbol)
    )""",
    "create index trading_age on trading (quarter)",
    """
    create table holdings (
        account_id uuid not null,
        symbol text not null,
        version integer not null,
        realised numeric not null,
        primary key (account_id, symbol)
    )""",
)

HELD_BACK = ("deliveries", "notice_deliveries")
"""Their rows say in which digest they were told, after they had been held back."""


def upgrade() -> None:
    """Create."""
    for statement in TABLES:
        op.execute(statement)
    work.create_indexes(op, "digests")
    for table in HELD_BACK:
        op.execute(f"alter table {table} add column digest_id uuid")


def downgrade() -> None:
    """Drop."""
    for table in HELD_BACK:
        op.execute(f"alter table {table} drop column digest_id")
    for table in ("holdings", "trading", "leaders", "digests", "digest_plans"):
        op.execute(f"drop table {table}")
