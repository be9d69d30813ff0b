"""Invoices paid on a chain, what came in for them, and how far each chain was read.

Revision ID: 0004
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = (
    """
    create table crypto_chains (
        chain text primary key,
        cursor bigint not null,
        cursor_hash text not null,
        head bigint not null,
        problem text,
        read_at timestamptz not null
    )""",
    "comment on column crypto_chains.cursor is 'the last block that was read for payments'",
    """
    create table crypto_invoices (
        id uuid primary key,
        user_id uuid not null,
        plan text not null,
        renews uuid,
        price_usd numeric(12, 2) not null check (price_usd > 0),
        chain text not null,
        asset text not null,
        decimals integer not null,
        address text not null,
        shared boolean not null,
        amount numeric(78, 0) not null check (amount > 0),
        rate_usd numeric not null check (rate_usd > 0),
        rate_source text not null,
        rate_at timestamptz not null,
        confirmations integer not null check (confirmations > 0),
        refund_address text,
        state text not null default 'new' check (state in ('new', 'seen', 'confirming', 'paid', 'paid_partial',
            'paid_over', 'paid_late', 'expired', 'invalid')),
        received numeric(78, 0) not null default 0,
        confirmed numeric(78, 0) not null default 0,
        worth_usd numeric(18, 2),
        subscription_id uuid,
        granted_from timestamptz,
        granted_until timestamptz,
        grants integer not null default 0,
        problem text,
        held boolean not null default true,
        held_until timestamptz not null,
        created_at timestamptz not null,
        expires_at timestamptz not null,
        updated_at timestamptz not null
    )""",
    "comment on column crypto_invoices.amount is 'base units of the asset: satoshi, wei'",
    "comment on column crypto_invoices.held is 'its address (or exact amount on a shared one) is nobody else''s'",
    "comment on column crypto_invoices.worth_usd is 'what a late payment was worth when it was confirmed'",
    """
    create unique index crypto_invoices_address on crypto_invoices (chain, address)
        where held and not shared""",
    """
    create unique index crypto_invoices_amount on crypto_invoices (chain, address, asset, amount)
        where held and shared""",
    "create index crypto_invoices_held on crypto_invoices (chain) where held",
    "create index crypto_invoices_of_user on crypto_invoices (user_id, created_at desc, id)",
    "create index crypto_invoices_of_address on crypto_invoices (chain, address, created_at desc)",
    """
    create table crypto_receipts (
        chain text not null,
        tx text not null,
        idx integer not null,
        asset text not null,
        address text not null,
        amount numeric(78, 0) not null check (amount > 0),
        sender text,
        status text not null check (status in ('seen', 'mined', 'lost', 'dropped')),
        block_number bigint,
        block_hash text,
        at timestamptz not null,
        lost_at timestamptz,
        final boolean not null default false,
        invoice_id uuid references crypto_invoices (id),
        booked numeric(78, 0),
        bookings integer not null default 0,
        settled boolean not null default false,
        created_at timestamptz not null,
        updated_at timestamptz not null,
        primary key (chain, tx, idx),
        check (status <> 'mined' or (block_number is not null and block_hash is not null))
    )""",
    "comment on column crypto_receipts.idx is 'log index or output; -1 the value of the transaction, -2 by balance'",
    "comment on column crypto_receipts.at is 'when it was first known, the time of its block if that was earlier'",
    "comment on column crypto_receipts.settled is 'its invoice was judged since it changed'",
    "create index crypto_receipts_of_invoice on crypto_receipts (invoice_id)",
    "create index crypto_receipts_open on crypto_receipts (chain) where not settled or not final",
    "create index crypto_receipts_unmatched on crypto_receipts (chain, created_at) where invoice_id is null",
    """
    create table crypto_told (
        chain text not null,
        tx text not null,
        invoice_id uuid not null references crypto_invoices (id),
        told_at timestamptz not null,
        result text not null default 'waiting' check (result in ('waiting', 'found', 'not_found', 'not_ours')),
        primary key (chain, tx, invoice_id)
    )""",
    "create index crypto_told_waiting on crypto_told (chain) where result = 'waiting'",
    """
    create table crypto_history (
        id bigint generated always as identity primary key,
        invoice_id uuid not null references crypto_invoices (id),
        at timestamptz not null,
        state text not null,
        received numeric(78, 0) not null,
        confirmed numeric(78, 0) not null
    )""",
    "create index crypto_history_of_invoice on crypto_history (invoice_id, id)",
)


def upgrade() -> None:
    """Create."""
    for statement in TABLES:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    for table in ("crypto_history", "crypto_told", "crypto_receipts", "crypto_invoices", "crypto_chains"):
        op.execute(f"drop table {table}")
