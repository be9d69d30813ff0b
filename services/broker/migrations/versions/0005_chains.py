"""The last chain of each underlying, and quotes of options that follow from it.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UP = (
    "create table chains (symbol text primary key, at timestamptz not null, body bytea not null)",
    "comment on table chains is 'the last chain of each underlying, as it travels'",
    "alter table quotes add column underlying text",
    "comment on column quotes.underlying is 'of an option: its quote follows the chains of this symbol'",
    "create index quotes_of_underlying on quotes (underlying) where underlying is not null",
    """
    create index positions_of_underlying on positions ((body -> 'instrument' ->> 'underlying'))
        where quantity <> 0""",
)
DOWN = (
    "drop index positions_of_underlying",
    "delete from quotes where underlying is not null",
    "alter table quotes drop column underlying",
    "drop table chains",
)


def upgrade() -> None:
    """Create."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    for statement in DOWN:
        op.execute(statement)
