"""The history of a stock's settings: from when until when they held. Open rows are those of watched stocks."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_CREATE = (
    """
    create table stock_settings_history (
        id bigint generated always as identity primary key,
        user_id uuid not null references users (id),
        symbol text not null,
        alerts_enabled boolean not null,
        note text not null,
        from_at timestamptz not null,
        until_at timestamptz check (until_at >= from_at)
    )
    """,
    "create index stock_settings_history_stock on stock_settings_history (user_id, symbol, id)",
    # The settings that hold now: one row at most.
    """
    create unique index stock_settings_history_now on stock_settings_history (user_id, symbol) where until_at is null
    """,
    # What was known before: settings since they were last changed. When an unwatched stock was removed, only the
    # audit log says.
    """
    insert into stock_settings_history (user_id, symbol, alerts_enabled, note, from_at, until_at)
    select s.user_id, s.symbol, s.alerts_enabled, s.note, s.updated_at,
           case when w.symbol is null then greatest(s.updated_at, (
               select max(a.at) from audit_log a
               where a.subject = 'watchlist/' || s.user_id and a.action = 'remove.stock'
                 and a.details ->> 'symbol' = s.symbol
           )) end
    from stock_settings s left join watchlist w using (user_id, symbol)
    """,
)


def upgrade() -> None:
    """Create the table and begin it with what there is."""
    for statement in _CREATE:
        op.execute(statement)


def downgrade() -> None:
    """Drop it; the settings of now stay in `stock_settings`."""
    op.execute("drop table stock_settings_history")
