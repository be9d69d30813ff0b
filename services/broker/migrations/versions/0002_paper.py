"""The paper venue: its accounts, books, orders, executions, holdings, what it tells, what became of options.

Revision ID: 0002
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table paper_accounts (
        id uuid primary key,
        cash numeric not null,
        tied numeric not null default 0,
        on_hold numeric not null default 0,
        frames bigint not null default 0
    )""",
    "comment on table paper_accounts is 'its row is locked before anything of the account changes'",
    """
    create table paper_books (
        symbol text primary key,
        bid numeric,
        ask numeric,
        bid_size numeric,
        ask_size numeric,
        at timestamptz not null
    )""",
    "comment on table paper_books is 'the last quote; sizes are what orders have left of it'",
    """
    create table paper_holdings (
        account_id uuid not null references paper_accounts,
        symbol text not null,
        underlying text not null,
        expires_on date,
        quantity numeric not null,
        cost numeric not null,
        buying numeric not null,
        selling numeric not null,
        primary key (account_id, symbol)
    )""",
    "create index paper_holdings_of_underlying on paper_holdings (account_id, underlying)",
    """
    create index paper_holdings_that_expire on paper_holdings (expires_on)
        where expires_on is not null and quantity <> 0""",
    """
    create table paper_orders (
        id uuid primary key,
        account_id uuid not null references paper_accounts,
        underlying text not null,
        symbols text[] not null,
        buys boolean not null,
        gate numeric,
        terms jsonb not null,
        state text not null,
        filled numeric not null,
        spent numeric not null,
        best numeric,
        triggered boolean not null,
        came_at timestamptz not null,
        works_at timestamptz not null,
        updated_at timestamptz not null,
        expires_at timestamptz,
        ends_at timestamptz,
        due_at timestamptz,
        replaces uuid,
        replaced_by uuid,
        reason text,
        expected numeric not null,
        needs numeric not null,
        open numeric not null,
        hold numeric not null,
        count integer not null
    )""",
    "comment on column paper_orders.gate is 'of a limit order of one leg, its limit: other quotes do not wake it'",
    "create index paper_orders_open on paper_orders (underlying) where state in ('accepted', 'pending')",
    "create index paper_orders_due on paper_orders (due_at) where due_at is not null",
    "create index paper_orders_changed on paper_orders (account_id, updated_at)",
    "create index paper_orders_working on paper_orders (account_id) where state = 'accepted'",
    """
    create table paper_executions (
        order_id uuid not null references paper_orders,
        id text not null,
        leg integer not null,
        quantity numeric not null,
        price numeric not null,
        fee numeric not null,
        at timestamptz not null,
        primary key (order_id, id)
    )""",
    """
    create table paper_frames (
        account_id uuid not null,
        number bigint not null,
        order_id uuid not null,
        report jsonb not null,
        at timestamptz not null,
        primary key (account_id, number)
    )""",
    "create index paper_frames_by_age on paper_frames (at)",
    """
    create table paper_facts (
        account_id uuid not null references paper_accounts,
        id text not null,
        symbol text not null,
        underlying text not null,
        quantity numeric not null,
        price numeric not null,
        side text,
        order_id uuid,
        at timestamptz not null,
        primary key (account_id, id)
    )""",
    "comment on table paper_facts is 'expiries (no side) and deliveries of shares'",
)


def upgrade() -> None:
    """Create."""
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    kept = ("facts", "frames", "executions", "orders", "holdings", "books", "accounts")
    for table in kept:
        op.execute(f"drop table paper_{table}")
