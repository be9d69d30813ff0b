"""The first schema of the brokerage: messaging, jobs, accounts, orders, what is sent, what moved positions.

Revision ID: 0001
"""

from alembic import op

from shared import idempotency, schedule, work
from shared.messaging import tables
from shared.messaging.ops import runs_table

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
    create table accounts (
        id uuid primary key,
        user_id uuid not null,
        venue text not null,
        mode text not null check (mode in ('paper', 'live')),
        reference text not null default '',
        name text not null,
        limits jsonb not null default '{}',
        cash numeric,
        buying_power numeric,
        balance_at timestamptz,
        checked_at timestamptz,
        trouble text,
        version bigint not null default 0,
        created_at timestamptz not null,
        closed_at timestamptz
    )""",
    "create index accounts_of_user on accounts (user_id)",
    "comment on column accounts.version is 'grows with each event that the account tells'",
    "comment on column accounts.checked_at is 'what happened at the venue before is known'",
    """
    create table orders (
        id uuid primary key,
        account_id uuid not null references accounts,
        user_id uuid not null,
        venue text not null,
        state text not null,
        symbols text[] not null,
        terms jsonb not null,
        submits integer not null default 0,
        seen boolean not null default false,
        said_filled boolean not null default false,
        cancel_wanted boolean not null default false,
        venue_order_id text,
        replaces uuid,
        replaced_by uuid,
        reason text,
        executions jsonb not null default '[]',
        cumulative jsonb not null default '[]',
        filled numeric not null default 0,
        reserved numeric not null default 0,
        closes boolean not null default false,
        refusals jsonb,
        version bigint not null default 0,
        created_at timestamptz not null,
        sent_at timestamptz,
        updated_at timestamptz not null
    )""",
    "comment on table orders is 'an order''s id is its client order id at the venue'",
    "comment on column orders.closes is 'it closes a position: it waits for cancels and takes what is held then'",
    "create index orders_of_account on orders (account_id, created_at desc, id)",
    """
    create index orders_open on orders (account_id)
        where state not in ('filled', 'canceled', 'replaced', 'rejected', 'expired')""",
    "create index orders_at_venue on orders (venue, venue_order_id) where venue_order_id is not null",
    f"""
    create table sendings (
        id uuid primary key,
        order_id uuid not null references orders,
        kind text not null check (kind in ('submit', 'cancel', 'replace', 'look_up')),
        {work.COLUMNS}
    )""",
    "create index sendings_of_order on sendings (order_id)",
    "comment on table sendings is 'what is to be said to a venue; one at a time for each order (the lane)'",
    """
    create table facts (
        account_id uuid not null references accounts,
        id text not null,
        symbol text not null,
        kind text not null check (kind in ('fill', 'split', 'expiry', 'charge')),
        at timestamptz not null,
        body jsonb not null,
        primary key (account_id, id)
    )""",
    "create index facts_of_symbol on facts (account_id, symbol, at, id)",
    """
    create table positions (
        account_id uuid not null references accounts,
        symbol text not null,
        quantity numeric not null,
        body jsonb not null,
        last_at timestamptz,
        last_id text,
        version bigint not null default 0,
        primary key (account_id, symbol)
    )""",
    """
    create table flags (
        id uuid primary key,
        account_id uuid not null references accounts,
        order_id uuid,
        code text not null,
        message text not null,
        at timestamptz not null
    )""",
    "create index flags_of_account on flags (account_id, at desc)",
    "comment on table flags is 'what cannot be, or should not: a person looks at it'",
    """
    create table halts (
        who text primary key,
        by_user uuid not null,
        reason text not null,
        at timestamptz not null
    )""",
    "comment on column halts.who is 'all, or a user: nothing of theirs is sent'",
    """
    create table quotes (
        symbol text primary key,
        bid numeric not null,
        ask numeric not null,
        at timestamptz not null,
        simulated boolean not null
    )""",
    """
    create table entitlements (
        user_id uuid not null,
        subscription_id uuid not null,
        names text[] not null,
        until timestamptz,
        version bigint not null,
        primary key (user_id, subscription_id)
    )""",
    "comment on table entitlements is 'what payment tells of each user''s plan'",
)


def upgrade() -> None:
    """Create."""
    tables.create(op)
    tables.add_cluster(op)
    tables.add_settled(op)
    runs_table.create_table(op)
    schedule.create_tables(op)
    idempotency.create(op)
    work.create_pauses(op)
    for statement in TABLES:
        op.execute(statement)
    work.create_indexes(op, "sendings")


def downgrade() -> None:
    """Drop."""
    dropped = ("entitlements", "quotes", "halts", "flags", "positions", "facts", "sendings", "orders", "accounts")
    for table in (*dropped, "work_pauses"):
        op.execute(f"drop table {table}")
    idempotency.drop(op)
    schedule.drop_tables(op)
    runs_table.drop_table(op)
    tables.drop(op)
