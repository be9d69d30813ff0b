"""Users, settings, API keys, watchlists, the audit log, rate limits; messaging and idempotency tables."""

from alembic import op

from shared import idempotency, schedule
from shared.messaging import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_CREATE = (
    """
    create table users (
        id uuid primary key,
        email text not null unique,
        external_id text unique,
        role text not null check (role in ('user', 'admin')),
        investing_style text,
        onboarded_at timestamptz,
        created_at timestamptz not null
    )
    """,
    """
    create table user_settings (
        user_id uuid primary key references users (id),
        timezone text not null default 'America/New_York',
        alerts_enabled boolean not null default true,
        min_score double precision not null default 60 check (min_score between 0 and 100),
        min_premium_usd numeric(16, 2) not null default 0 check (min_premium_usd >= 0),
        updated_at timestamptz not null
    )
    """,
    """
    create table api_keys (
        id uuid primary key,
        user_id uuid not null references users (id),
        name text not null,
        role text not null check (role in ('user', 'admin')),
        digest bytea not null,
        created_at timestamptz not null,
        deleted_at timestamptz
    )
    """,
    "create index api_keys_user_id on api_keys (user_id) where deleted_at is null",
    """
    create table watchlist (
        user_id uuid not null references users (id),
        symbol text not null,
        added_at timestamptz not null,
        primary key (user_id, symbol)
    )
    """,
    # Outlives the watchlist row: a stock that is watched again has its settings back.
    """
    create table stock_settings (
        user_id uuid not null references users (id),
        symbol text not null,
        alerts_enabled boolean not null default true,
        note text not null default '',
        last_alert_at timestamptz,
        updated_at timestamptz not null,
        primary key (user_id, symbol)
    )
    """,
    """
    create table audit_log (
        id uuid primary key,
        service text not null,
        actor text not null,
        action text not null,
        subject text not null,
        at timestamptz not null,
        request_id text,
        details jsonb not null
    )
    """,
    "create index audit_log_at on audit_log (at desc, id desc)",
    "create index audit_log_subject on audit_log (subject, at desc)",
    # Losing it in a crash only refills the buckets.
    """
    create unlogged table rate_buckets (
        key text primary key,
        tokens double precision not null,
        taken double precision not null,
        updated_at timestamptz not null
    ) with (fillfactor = 50)
    """,
    "create index rate_buckets_updated_at on rate_buckets (updated_at)",
)

_DROP = ("rate_buckets", "audit_log", "stock_settings", "watchlist", "api_keys", "user_settings", "users")


def upgrade() -> None:
    """Create the schema."""
    tables.create(op)
    idempotency.create(op)
    schedule.create_tables(op)
    for statement in _CREATE:
        op.execute(statement)


def downgrade() -> None:
    """Drop it, with what it holds."""
    for table in _DROP:
        op.execute(f"drop table {table}")
    schedule.drop_tables(op)
    idempotency.drop(op)
    tables.drop(op)
