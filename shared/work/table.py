"""The columns of a table of claimed rows, and every statement of its life.

`{table}`, `{only}`, `{pauses}` and `{order}` are filled in.
"""

from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.sql.elements import TextClause


def _held(*statuses: str) -> str:
    """Return what locks the rows whose tokens are ours still, in one order: statements of one worker may meet."""
    among = ", ".join(f"'{status}'" for status in statuses)
    return f"""with held as materialized (
        select {{table}}.id
        from unnest(cast(:ids as uuid[]), cast(:tokens as uuid[])) as mine (id, token)
        join {{table}} on {{table}}.id = mine.id and {{table}}.token = mine.token
        where {{table}}.status in ({among}) order by {{table}}.id for update of {{table}}
    )"""  # noqa: S608 - our own words


COLUMNS: Final = """
    status text not null default 'pending'
        check (status in ('pending', 'claimed', 'started', 'done', 'failed', 'unknown')),
    due_at timestamptz not null,
    lane text,
    lease_until timestamptz,
    token uuid,
    attempts integer not null default 0,
    uncertain boolean not null default false,
    last_error text,
    created_at timestamptz not null,
    settled_at timestamptz
"""
"""The columns of every table of claimed rows, besides `id uuid` and the service's own."""

PAUSES: Final = """
    create table work_pauses (
        kind text not null,
        lane text not null,
        until timestamptz not null,
        primary key (kind, lane)
    )"""
"""How long destinations want to be left alone, by kind of work; the lane '' stands for all of the kind."""

INDEXES = (
    "create index {table}_due on {table} (due_at, id) where status = 'pending'",
    "create index {table}_leased on {table} (lease_until) where status in ('claimed', 'started')",
)
# The claim waits for no disk: one that Postgres loses in a crash is a lease that ended, and to start the row, which is
# on disk before the effect begins, takes the claim's token.
SERIALISE: Final = """
    select pg_advisory_xact_lock(hashtextextended('work/' || current_schema() || '/{table}', 0)),
        set_config('synchronous_commit', 'off', true)"""
CLAIMABLE: Final = """
    select * from {table}
    where status = 'pending' and due_at <= :now and {only}
      and not exists (select from work_pauses where kind = :kind and lane = '' and until > :now)
      and ({pauses} is null or cast({pauses} as text) <> all(
            array(select lane from work_pauses where kind = :kind and until > :now)))
      and (lane is null or lane <> all(array(
            select lane from {table} where status in ('claimed', 'started') and lane is not null)))
    order by {order} limit :candidates for update skip locked"""
CLAIM: Final = """
    update {table} set status = 'claimed', token = :token, lease_until = :until where id = any(:ids) returning *"""
LOOK: Final = """
    select exists(select from {table} where status = 'pending' and due_at <= :now and {only}) as ready, least(
        (select due_at from {table} where status = 'pending' and due_at > :now and {only} order by {order} limit 1),
        (select min(until) from work_pauses where kind = :kind and until > :now)) as next_at"""
PAUSE: Final = """
    insert into work_pauses as known (kind, lane, until)
    select :kind, r.lane, r.until
    from unnest(cast(:lanes as text[]), cast(:untils as timestamptz[])) as r (lane, until) order by r.lane
    on conflict (kind, lane) do update set until = greatest(known.until, excluded.until)"""
FORGET_PAUSES: Final = """
    delete from work_pauses where (kind, lane) in (
        select kind, lane from work_pauses where until <= :now for update skip locked)"""
START: Final = f"""
    {_held("claimed")}
    update {{table}} set status = 'started', lease_until = :until from held where {{table}}.id = held.id
    returning {{table}}.id"""  # noqa: S608 - our own words
RENEW: Final = f"""
    {_held("claimed", "started")}
    update {{table}} set lease_until = :until from held where {{table}}.id = held.id"""  # noqa: S608 - our own words
RELEASE: Final = """
    update {table} set status = 'pending', token = null, lease_until = null
    where id = :id and token = :token and status = 'claimed'"""
RELEASE_EXPIRED: Final = """
    update {table} set status = 'pending', token = null, lease_until = null
    where id in (
        select id from {table} where status = 'claimed' and lease_until < :now and {only} for update skip locked)"""
EXPIRED: Final = """
    select * from {table} where status = 'started' and lease_until < :now and {only}
    order by id limit 100 for update skip locked"""
SETTLE: Final = f"""
    {_held("claimed", "started")}
    update {{table}} set status = r.status, due_at = r.due_at, attempts = r.attempts, uncertain = r.uncertain,
        last_error = r.error, settled_at = r.settled_at, token = null, lease_until = null
    from held join unnest(cast(:ids as uuid[]), cast(:statuses as text[]), cast(:dues as timestamptz[]),
        cast(:attempts as integer[]), cast(:uncertains as boolean[]), cast(:errors as text[]),
        cast(:settled as timestamptz[]))
        as r (id, status, due_at, attempts, uncertain, error, settled_at) using (id)
    where {{table}}.id = held.id
    returning {{table}}.id"""  # noqa: S608 - our own words


def create_indexes(op: Any, table: str) -> None:
    """Create what the worker's queries need on a table that has COLUMNS (for Alembic's `op`)."""
    for statement in INDEXES:
        op.execute(statement.replace("{table}", table))


def create_pauses(op: Any) -> None:
    """Create the table that every schema with claimed rows needs once (for Alembic's `op`)."""
    op.execute(PAUSES)


def start(table: str) -> TextClause:
    """Return what starts claimed rows of a table (:ids, :tokens, :until), and tells which of them are ours still."""
    return statement(START, table, "true", "lane", "id")


def statement(template: str, table: str, only: str, pauses: str, order: str) -> TextClause:
    """Return a statement for one table, narrowed to the rows that `only` names.

    `pauses` names what waits bind, `order` what is claimed first.
    """
    filled = {"{table}": table, "{only}": f"({only})", "{pauses}": pauses, "{order}": order}
    for name, value in filled.items():
        template = template.replace(name, value)
    return text(template)
