"""What must hold in a database that came back: of messages, money and positions, and that every row can be read.

    python -m deploy.invariants      # of OPENBELL_DATABASE_URL, as an administrator; exit code 1: something does not

It reads and changes nothing. Whether the venues and Stripe agree is not asked here: the brokerage reconciles each
account when it starts, and payment's sweep and invariants do so by the clock.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

import asyncpg
from sqlalchemy import text

from services.broker.domain import shapes
from services.broker.domain.positions import BadFact, Position, apply
from services.payment.store.ledger import LedgerStore
from shared.db import Database, Row
from shared.schema import SERVICES, head
from shared.settings import SharedSettings

_TABLES: Final = """
    select c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and c.relkind = 'r' order by c.relname"""
_IDENTITIES: Final = """
    select c.relname, a.attname, pg_get_serial_sequence(format('%I.%I', n.nspname, c.relname), a.attname) as sequence
    from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
    where n.nspname = $1 and a.attidentity <> '' and c.relkind in ('r', 'p') order by c.relname"""
# Waiting and held rows are of events that the lane took; the inbox remembers those of 30 days at the least.
_UNKNOWN: Final = """
    select count(*) from failed_jobs f where status in ('waiting', 'held') and event_id is not null
        and record_time > now() - interval '30 days'
        and not exists (select from inbox i where i.consumer = f.consumer and i.event_id = f.event_id)"""
_BAD_INDEXES: Final = """
    select i.indexrelid::regclass::text as name from pg_index i join pg_class c on c.oid = i.indrelid
    join pg_namespace n on n.oid = c.relnamespace where n.nspname = $1 and not i.indisvalid"""
_POSITIONS: Final = text("select account_id, symbol, quantity, body from positions order by account_id, symbol")
_FACTS: Final = text("select account_id, symbol, kind, body from facts order by account_id, symbol, at, id")


@dataclass(slots=True)
class Examined:
    """What was found: lines for people, and what does not hold. `rows` counts each table, by schema.table."""

    lines: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """All lines."""
        return "\n".join(self.lines)


async def examine(admin_url: str) -> Examined:
    """Look at every service's schema."""
    found = Examined()
    admin = await asyncpg.connect(admin_url)
    try:
        for service in SERVICES:
            if await admin.fetchval("select to_regclass($1)", f"{service}.alembic_version") is None:
                found.broken.append(f"{service}: there is no such schema")
            else:
                await _schema(admin, service, found)
    finally:
        await admin.close()
    if not found.broken:
        await _ledger(admin_url, found)
        await _positions(admin_url, found)
    return found


async def _schema(admin: asyncpg.Connection, service: str, found: Examined) -> None:
    await admin.execute(f"set search_path to {service}")
    known, needed = await admin.fetchval("select version_num from alembic_version"), head(service)
    if known > needed:
        found.broken.append(f"{service}: its schema is {known}, this code knows {needed}: check out the newer code")
    for row in await admin.fetch(_TABLES, service):
        try:
            count = await admin.fetchval(f'select count(*) from "{row["relname"]}"')  # noqa: S608 - a name of the catalogue
        except asyncpg.PostgresError as error:
            found.broken.append(f"{service}.{row['relname']} cannot be read: {error}")
        else:
            found.rows[f"{service}.{row['relname']}"] = count
    for row in await admin.fetch(_IDENTITIES, service):
        most = await admin.fetchval(f'select coalesce(max("{row["attname"]}"), 0) from "{row["relname"]}"')  # noqa: S608 - as above
        last = await admin.fetchval(f"select case when is_called then last_value else 0 end from {row['sequence']}")  # noqa: S608 - as above
        if most > last:
            found.broken.append(f"{service}.{row['relname']} has id {most}, the next one given is {last + 1}")
    if unknown := await admin.fetchval(_UNKNOWN):
        found.broken.append(f"{service}: the inbox does not know {unknown} events that wait in failed_jobs")
    bad = [row["name"] for row in await admin.fetch(_BAD_INDEXES, service)]
    if bad:
        found.broken.append(f"{service}: indexes that do not hold: {', '.join(bad)}")
    rows = sum(count for name, count in found.rows.items() if name.startswith(f"{service}."))
    outbox, failed = found.rows.get(f"{service}.outbox", 0), found.rows.get(f"{service}.failed_jobs", 0)
    newer = f" (this code needs {needed}: make migrate)" if known < needed else ""
    found.lines.append(f"{service:<9} at {known}{newer}, {rows} rows; {outbox} in the outbox, {failed} failed jobs")


async def _ledger(admin_url: str, found: Examined) -> None:
    db = Database(admin_url, schema="payment", size=2)
    try:
        async with db.read() as tx:
            rows = await LedgerStore().unbalanced(tx)
    finally:
        await db.close()
    found.broken += [f"the ledger is off by {row['amount']} {row['currency']} (e-{row['exponent']})" for row in rows]
    found.lines.append(f"ledger    {found.rows.get('payment.ledger_entries', 0)} entries, {len(rows)} currencies off")


async def _positions(admin_url: str, found: Examined) -> None:
    db = Database(admin_url, schema="broker", size=2)
    try:
        async with db.read() as tx:
            positions, facts = await tx.fetch(_POSITIONS), await tx.fetch(_FACTS)
    finally:
        await db.close()
    moved = {key: list(rows) for key, rows in groupby(facts, lambda row: (row["account_id"], row["symbol"]))}
    off = 0
    for row in positions:
        followed = _follow(row, moved.pop((row["account_id"], row["symbol"]), []))
        if row["quantity"] != followed.quantity:
            off += 1
            held = f"{row['quantity']} {row['symbol']} of account {row['account_id']}"
            found.broken.append(f"position {held}: its fills and other facts make {followed.quantity}")
    found.broken += [f"facts of {symbol} of account {account} have no position" for account, symbol in moved]
    found.lines.append(f"positions {len(positions)} from {len(facts)} facts, {off} off")


def _follow(row: Row, facts: Sequence[Row]) -> Position:
    """Return the position that follows from all its facts, as the brokerage's books have it."""
    position = Position(shapes.load_position(row["body"]).instrument)
    for fact in facts:
        try:
            position = apply(position, shapes.load_fact(fact["kind"], fact["body"]))
        except BadFact:  # flagged when it came, and it does not count
            continue
    return position


def main() -> int:
    """Look, tell, and return the exit code."""
    found = asyncio.run(examine(SharedSettings().database_url))
    sys.stdout.write("\n".join([*found.lines, *(f"BROKEN {one}" for one in found.broken)]) + "\n")
    return int(bool(found.broken))


if __name__ == "__main__":
    sys.exit(main())
