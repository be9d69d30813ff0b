"""Exits of brackets and OCOs, and whose exit an order is.

Revision ID: 0006
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

UP = (
    "alter table orders add column parent uuid references orders",
    "comment on column orders.parent is 'of an exit: the bracket or the OCO that it is of'",
    "create index orders_of_parent on orders (parent) where parent is not null",
    """
    create table exits (
        order_id uuid primary key references orders,
        account_id uuid not null references accounts,
        symbol text not null,
        sells boolean not null,
        take_profit numeric not null,
        aim text not null default 'stop_loss' check (aim in ('stop_loss', 'take_profit')),
        seen numeric not null default -1,
        due_at timestamptz,
        ended boolean not null default false,
        over boolean not null default false
    )""",
    "comment on table exits is 'what protects a position: of each bracket and OCO that went out'",
    "comment on column exits.seen is 'the versions of its orders, added up, when it was last looked at'",
    "comment on column exits.ended is 'somebody wants no exits any more'",
    "create index exits_live on exits (account_id, symbol) where not over",
)
DOWN = ("drop table exits", "drop index orders_of_parent", "alter table orders drop column parent")


def upgrade() -> None:
    """Create."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    for statement in DOWN:
        op.execute(statement)
