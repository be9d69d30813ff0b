"""The first schema of alerts.

Revision ID: 0001
"""

from datetime import UTC, datetime

from alembic import op

from shared import idempotency, schedule, work
from shared.messaging import tables
from shared.months import AHEAD, create_month, month

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    """
    create table users (
        user_id uuid primary key,
        email text,
        alerts_enabled boolean not null default true,
        min_score float8,
        min_premium_usd numeric
    )""",
    """
    create table watched (
        symbol text not null,
        user_id uuid not null,
        primary key (symbol, user_id)
    )""",
    """
    create table rules (
        rule_id uuid primary key,
        user_id uuid not null,
        name text not null,
        symbols text[] not null,
        min_score float8 not null,
        min_premium_usd numeric not null,
        enabled boolean not null,
        created_at timestamptz not null
    )""",
    "create index rules_of_user on rules (user_id)",
    "create index rules_symbols on rules using gin (symbols)",
    """
    create table channels (
        user_id uuid not null,
        channel text not null check (channel in ('discord', 'email')),
        target text not null,
        lane text not null,
        enabled boolean not null,
        reason text,
        created_at timestamptz not null,
        updated_at timestamptz not null,
        primary key (user_id, channel)
    )""",
    """
    create table contracts (
        symbol text not null,
        session date not null,
        contract text not null,
        line jsonb not null,
        primary key (symbol, session, contract)
    )""",
    """
    create table alerts (
        alert_id uuid not null,
        session date not null,
        user_id uuid not null,
        rule_id uuid not null,
        rule_name text not null,
        symbol text not null,
        created_at timestamptz not null,
        updated_at timestamptz not null,
        opened_at timestamptz,
        as_of timestamptz not null,
        source text not null,
        delay_s float8 not null,
        simulated boolean not null,
        title text not null,
        top_score float8 not null,
        contract_count integer not null,
        premium_usd numeric not null,
        best jsonb not null,
        notified_score float8 not null,
        notifications integer not null,
        primary key (alert_id, session)
    ) partition by range (session)""",
    "create index alerts_of_user on alerts (user_id, created_at desc, alert_id desc)",
    "create index alerts_of_stock on alerts (symbol, session)",
    f"""
    create table deliveries (
        id uuid not null,
        session date not null,
        alert_id uuid not null,
        user_id uuid not null,
        channel text not null,
        provider_id text,
        {work.COLUMNS},
        primary key (id, session)
    ) partition by range (session)""",
    "create index deliveries_of_alert on deliveries (alert_id)",
    "create index deliveries_of_user on deliveries (user_id, channel, status)",
)


def upgrade() -> None:
    """Create."""
    tables.create(op)
    schedule.create_tables(op)
    idempotency.create(op)
    for statement in TABLES:
        op.execute(statement)
    work.create_indexes(op, "deliveries")
    today = datetime.now(UTC).date()
    for table in ("alerts", "deliveries"):
        op.execute(f"create table {table}_default partition of {table} default")
        for ahead in range(-1, AHEAD + 1):
            op.execute(create_month(table, month(today, ahead)))


def downgrade() -> None:
    """Drop."""
    for table in ("deliveries", "alerts", "contracts", "channels", "rules", "watched", "users"):
        op.execute(f"drop table {table}")
    idempotency.drop(op)
    schedule.drop_tables(op)
    tables.drop(op)
