"""Fan-outs: what many rules look at is matched page by page, and waits behind what few look at.

Revision ID: 0011
"""

from alembic import op

from shared import work

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create."""
    op.execute(
        """
        create table rule_symbols (
            symbol text not null,
            user_id uuid not null,
            rule_id uuid not null references rules (rule_id) on delete cascade,
            primary key (symbol, user_id, rule_id)
        )"""
    )
    op.execute("create index rule_symbols_of_rule on rule_symbols (rule_id)")
    op.execute(
        """
        insert into rule_symbols (symbol, user_id, rule_id)
        select distinct unnest(case when symbols = '{}' then array[''] else symbols end), user_id, rule_id
        from rules where kind = 'activity'"""
    )
    op.execute("drop index rules_symbols")
    op.execute(
        f"""
        create table fan_outs (
            id uuid primary key,
            symbol text not null,
            session date not null,
            cause_id uuid not null,
            cause_time timestamptz not null,
            as_of timestamptz not null,
            source text not null,
            delay_s float8 not null,
            after_user uuid,
            {work.COLUMNS}
        )"""
    )
    work.create_indexes(op, "fan_outs")
    op.execute("create index fan_outs_of_stock on fan_outs (symbol, session, as_of, id)")
    op.execute("create index fan_outs_age on fan_outs (settled_at)")
    op.execute("alter table deliveries add column bulk boolean not null default false")
    op.execute("create index deliveries_turn on deliveries (bulk, due_at, id) where status = 'pending'")


def downgrade() -> None:
    """Drop. Fan-outs that are under way end where they are."""
    op.execute("drop index deliveries_turn")
    op.execute("alter table deliveries drop column bulk")
    op.execute("drop table fan_outs")
    op.execute("create index rules_symbols on rules using gin (symbols)")
    op.execute("drop table rule_symbols")
