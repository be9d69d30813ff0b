"""The ledger, which only grows and always adds up; what a charge paid for; what holds access back; cards.

Revision ID: 0005
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

UP = (
    """
    create table ledger_entries (
        key text primary key,
        kind text not null check (kind in ('charge', 'refund', 'dispute', 'fee', 'payout', 'receipt', 'other')),
        at timestamptz not null,
        about text not null,
        user_id uuid,
        lines integer not null check (lines > 0),
        recorded_at timestamptz not null
    )""",
    "comment on column ledger_entries.key is '<provider>/<object id> of what moved: stripe/txn_1Abc'",
    "comment on column ledger_entries.at is 'when it happened, by its provider'",
    "comment on column ledger_entries.about is '<provider>/<object id> of what it was for: stripe/ch_1Abc'",
    "comment on column ledger_entries.lines is 'how many postings it has, so that none is added later'",
    "create index ledger_entries_in_order on ledger_entries (at, key)",
    "create index ledger_entries_about on ledger_entries (about)",
    """
    create table ledger_postings (
        entry text not null references ledger_entries,
        line integer not null,
        account text not null check (account ~ '^(assets|income|expenses|equity)[:][a-z_]+$'),
        currency text not null check (currency ~ '^[A-Za-z0-9.]{2,20}$'),
        exponent smallint not null check (exponent between 0 and 36),
        amount numeric(38, 0) not null check (amount <> 0),
        primary key (entry, line)
    )""",
    "comment on column ledger_postings.amount is 'minor or base units; above zero a debit, below it a credit'",
    """
    create function ledger_only_grows() returns trigger language plpgsql as $$
    begin
        raise exception 'the ledger only grows: % of % is refused', tg_op, tg_table_name using errcode = 'OB001';
    end $$""",
    """
    create function ledger_adds_up() returns trigger language plpgsql as $$
    declare
        entry_key text;
    begin
        if tg_table_name = 'ledger_entries' then
            select new.key into entry_key;
        else
            select new.entry into entry_key;
        end if;
        if (select count(*) from ledger_postings where entry = entry_key)
            <> (select lines from ledger_entries where key = entry_key)
        then
            raise exception 'entry % has not the postings that it was made with', entry_key using errcode = 'OB002';
        end if;
        if exists (
            select from ledger_postings where entry = entry_key group by currency, exponent having sum(amount) <> 0)
        then
            raise exception 'entry % does not add up to zero', entry_key using errcode = 'OB002';
        end if;
        return null;
    end $$""",
    *(
        statement
        for table in ("ledger_entries", "ledger_postings")
        for statement in (
            f"""
            create trigger {table}_only_grows before update or delete on {table}
            for each row execute function ledger_only_grows()""",
            f"""
            create trigger {table}_is_kept before truncate on {table}
            for each statement execute function ledger_only_grows()""",
            f"""
            create constraint trigger {table}_adds_up after insert on {table}
            deferrable initially deferred for each row execute function ledger_adds_up()""",
        )
    ),
    """
    create table invoice_payments (
        payment_intent text primary key,
        invoice text not null,
        user_id uuid not null,
        subscription text,
        reason text,
        period_end timestamptz
    )""",
    "comment on table invoice_payments is 'which invoice of Stripe a payment was for: a charge no longer says it'",
    """
    create table holds (
        about text primary key,
        user_id uuid not null,
        reason text not null check (reason in ('refunded', 'disputed')),
        payment_intent text,
        lifted boolean not null,
        updated_at timestamptz not null
    )""",
    "comment on table holds is 'refunds and disputes that hold back access to what their charge paid for'",
    "create index holds_of_user on holds (user_id) where not lifted",
    """
    create table cards (
        user_id uuid primary key,
        provider_id text not null,
        brand text not null,
        last4 text not null,
        expires date not null,
        seen_at timestamptz not null
    )""",
    "comment on table cards is 'the card that a user paid with last, as far as the notice of its end needs it'",
    "comment on column cards.expires is 'the first day on which it no longer works'",
)


def upgrade() -> None:
    """Create."""
    for statement in UP:
        op.execute(statement)


def downgrade() -> None:
    """Drop."""
    for table in ("cards", "holds", "invoice_payments", "ledger_postings", "ledger_entries"):
        op.execute(f"drop table {table}")
    op.execute("drop function ledger_adds_up()")
    op.execute("drop function ledger_only_grows()")
