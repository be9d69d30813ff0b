"""The first schema of payment: messaging, jobs, customers, subscriptions, notices.

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
    create table customers (
        user_id uuid primary key,
        email text not null,
        stripe_id text unique,
        created_at timestamptz not null
    )""",
    """
    create table subscriptions (
        id uuid primary key,
        user_id uuid not null,
        provider text not null check (provider in ('stripe', 'crypto', 'manual')),
        provider_id text unique,
        plan text not null,
        status text not null check (status in ('trialing', 'active', 'past_due', 'paused', 'canceled', 'expired')),
        current_period_start timestamptz,
        current_period_end timestamptz,
        trial_end timestamptz,
        grace_until timestamptz,
        cancel_at_period_end boolean not null default false,
        told jsonb,
        version bigint not null default 0,
        created_at timestamptz not null,
        updated_at timestamptz not null
    )""",
    "comment on column subscriptions.provider_id is 'the subscription at Stripe; null where nobody else has one'",
    "comment on column subscriptions.told is 'the body of the last SubscriptionChanged, to tell each change once'",
    """
    create unique index subscriptions_one_a_user on subscriptions (user_id)
        where status in ('trialing', 'active', 'past_due', 'paused')""",
    "create index subscriptions_of_user on subscriptions (user_id, created_at desc)",
    """
    create table notices (
        name text primary key,
        told_at timestamptz not null
    )""",
    "comment on table notices is 'what a user was told of, so that each thing is told once: receipt/in_1Abc'",
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


def downgrade() -> None:
    """Drop."""
    for table in ("notices", "subscriptions", "customers", "work_pauses"):
        op.execute(f"drop table {table}")
    idempotency.drop(op)
    schedule.drop_tables(op)
    runs_table.drop_table(op)
    tables.drop(op)
