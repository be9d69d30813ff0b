"""Calls to Stripe, and what it was told of each customer.

Revision ID: 0003
"""

from alembic import op

from shared import work

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

CALLS = f"""
    create table stripe_calls (
        id uuid primary key,
        key text not null unique,
        ordinal bigint not null,
        user_id uuid not null,
        kind text not null,
        method text not null check (method in ('post', 'delete')),
        path text not null,
        params jsonb not null,
        meaning bytea not null,
        turn integer not null default 0,
        result jsonb,
        refusal jsonb,
        {work.COLUMNS}
    )"""

UP = (
    CALLS,
    "comment on table stripe_calls is 'every write at Stripe, before it is sent; lane is what it changes'",
    "comment on column stripe_calls.meaning is 'a hash of what was asked for, to know the same wish again'",
    "comment on column stripe_calls.turn is 'counts keys that Stripe answers with an old failure'",
    """
    create unique index stripe_calls_one_at_a_time on stripe_calls (lane)
        where status in ('pending', 'claimed', 'started')""",
    "create unique index stripe_calls_of_lane on stripe_calls (lane, ordinal)",
    "create index stripe_calls_settled on stripe_calls (settled_at) where settled_at is not null",
    "alter table customers alter column email drop not null",
    "alter table customers add column told_email text",  # the address that Stripe has
    "create index customers_without_stripe on customers (user_id) where stripe_id is null",
)
DOWN = (
    "drop index customers_without_stripe",
    "alter table customers drop column told_email",
    "update customers set email = '' where email is null",
    "alter table customers alter column email set not null",
    "drop table stripe_calls",
)


def upgrade() -> None:
    """Create."""
    for statement in UP:
        op.execute(statement)
    work.create_indexes(op, "stripe_calls")


def downgrade() -> None:
    """Drop."""
    for statement in DOWN:
        op.execute(statement)
