"""The paper venue's tables: loads a desk under locks and writes back what it changed. Nothing else touches them.

Every transaction locks in one order: the underlyings (advisory, sorted), then the accounts' rows (sorted). So whatever
two replicas do with an instrument or an account happens one after the other, and an account's frames are numbered in
the order in which they are committed.
"""

from collections.abc import Collection, Iterable
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.broker.adapters.paper import rows as rows_of
from services.broker.domain.desk import Desk
from services.broker.domain.instruments import Instrument, Option, instrument
from services.broker.domain.orders import Execution, Report
from services.broker.domain.positions import PositionFact
from services.broker.domain.tickets import Purse
from shared.db import Row, Tx
from shared.retention import slice_of

_LOCK: Final = text("""
    select pg_advisory_xact_lock(key) from (
        select distinct hashtextextended('paper/' || name, 0) as key from unnest(cast(:names as text[])) as name
        order by key) as keys""")
_BOOKS: Final = text("select * from paper_books where symbol = any(cast(:symbols as text[]))")
_OPEN: Final = text("""
    insert into paper_accounts (id, cash) select id, :cash from unnest(cast(:ids as uuid[])) as id order by id
    on conflict do nothing""")
_PURSES: Final = text("select * from paper_accounts where id = any(cast(:ids as uuid[])) order by id for update")
_HOLDINGS: Final = text("""
    select h.* from unnest(cast(:accounts as uuid[]), cast(:underlyings as text[])) as pair (account_id, underlying)
        join paper_holdings h using (account_id, underlying)""")
_TICKETS: Final = text("select * from paper_orders where id = any(cast(:ids as uuid[]))")
_QUOTED: Final = text("""
    select * from paper_orders o
    where underlying = any(cast(:underlyings as text[])) and state in ('accepted', 'pending') and exists (
        select from jsonb_to_recordset(cast(:quotes as jsonb)) as q (symbol text, bid numeric, ask numeric)
        where q.symbol = any(o.symbols)
            and (o.gate is null or (o.buys and q.ask <= o.gate) or (not o.buys and q.bid >= o.gate)))""")
_NAMING: Final = text("""
    select * from paper_orders
    where underlying = any(cast(:underlyings as text[])) and state = 'accepted'
        and symbols && cast(:symbols as text[])""")
_DUE: Final = text("select id, underlying from paper_orders where due_at <= :now order by due_at limit :most")
_SAVE_BOOKS: Final = text("""
    insert into paper_books as known (symbol, bid, ask, bid_size, ask_size, at)
    select * from jsonb_to_recordset(cast(:rows as jsonb))
        as r (symbol text, bid numeric, ask numeric, bid_size numeric, ask_size numeric, at timestamptz)
    on conflict (symbol) do update set bid = excluded.bid, ask = excluded.ask, bid_size = excluded.bid_size,
        ask_size = excluded.ask_size, at = excluded.at""")
_SAVE_PURSES: Final = text("""
    update paper_accounts a set cash = r.cash, tied = r.tied, on_hold = r.on_hold, frames = r.frames
    from jsonb_to_recordset(cast(:rows as jsonb))
        as r (id uuid, cash numeric, tied numeric, on_hold numeric, frames bigint)
    where a.id = r.id""")
_SAVE_HOLDINGS: Final = text("""
    insert into paper_holdings (account_id, symbol, underlying, expires_on, quantity, cost, buying, selling)
    select * from jsonb_to_recordset(cast(:rows as jsonb)) as r (account_id uuid, symbol text, underlying text,
        expires_on date, quantity numeric, cost numeric, buying numeric, selling numeric)
    on conflict (account_id, symbol) do update set quantity = excluded.quantity, cost = excluded.cost,
        buying = excluded.buying, selling = excluded.selling""")
_SAVE_ORDERS: Final = text(f"""
    insert into paper_orders ({", ".join(rows_of.ORDER)})
    select * from jsonb_to_recordset(cast(:rows as jsonb))
        as r ({", ".join(f"{name} {kind}" for name, kind in rows_of.ORDER.items())})
    on conflict (id) do update set {", ".join(f"{name} = excluded.{name}" for name in rows_of.CHANGING)}""")  # noqa: S608 - names of columns, all ours
_SAVE_EXECUTIONS: Final = text("""
    insert into paper_executions (order_id, id, leg, quantity, price, fee, at)
    select * from jsonb_to_recordset(cast(:rows as jsonb))
        as r (order_id uuid, id text, leg integer, quantity numeric, price numeric, fee numeric, at timestamptz)""")
_SAVE_FRAMES: Final = text("""
    insert into paper_frames (account_id, number, order_id, report, at)
    select r.*, cast(:now as timestamptz) from jsonb_to_recordset(cast(:rows as jsonb))
        as r (account_id uuid, number bigint, order_id uuid, report jsonb)""")
_SAVE_FACTS: Final = text("""
    insert into paper_facts (account_id, id, symbol, underlying, quantity, price, side, order_id, at)
    select * from jsonb_to_recordset(cast(:rows as jsonb)) as r (account_id uuid, id text, symbol text,
        underlying text, quantity numeric, price numeric, side text, order_id uuid, at timestamptz)""")
_EXPIRING: Final = text("""
    select account_id, symbol, underlying from paper_holdings
    where expires_on <= :day and quantity <> 0 and underlying = any(cast(:underlyings as text[]))
    union
    select o.account_id, symbol, o.underlying from paper_orders o, unnest(o.symbols) as symbol
    where o.state = 'accepted' and o.underlying = any(cast(:underlyings as text[])) and symbol <> o.underlying""")
_EXECUTIONS: Final = text("""
    select * from paper_executions where order_id = any(cast(:ids as uuid[])) order by order_id, at, id""")
_CHANGED: Final = text("""
    select * from paper_orders where account_id = :account_id and state = 'accepted'
    union all
    select * from paper_orders
    where account_id = :account_id and state not in ('accepted', 'pending', 'void') and updated_at >= :since""")
_FACTS: Final = text("select * from paper_facts where account_id = :account_id and at >= :since order by at, id")
_HELD: Final = text("select * from paper_holdings where account_id = :account_id and quantity <> 0 order by symbol")
_PURSE: Final = text("select * from paper_accounts where id = :id")
FRAMES_MOST: Final = 5000
"""So many frames are read at once."""
_NEW_FRAMES: Final = text(f"""
    select s.place, f.* from unnest(cast(:ids as uuid[]), cast(:lasts as bigint[]))
            with ordinality as s (account_id, last, place)
        join paper_frames f on f.account_id = s.account_id and f.number > s.last
    order by f.account_id, f.number limit {FRAMES_MOST}""")  # noqa: S608 - our own number
_FORGET: Final = slice_of("paper_frames", "at < :before")


class PaperTables:
    """Reads and writes the venue's tables."""

    # A desk

    async def lock(self, tx: Tx, underlyings: Collection[str]) -> None:
        """Let nobody else do anything with these underlyings until the transaction ends."""
        await tx.execute(_LOCK, names=sorted(underlyings))

    async def load_books(self, tx: Tx, desk: Desk, symbols: Collection[str]) -> None:
        """Load what is not loaded of the last quotes."""
        if missing := [symbol for symbol in symbols if symbol not in desk.books]:
            rows = await tx.fetch(_BOOKS, symbols=missing)
            desk.books.update({row["symbol"]: rows_of.book(row) for row in rows})

    async def load_accounts(self, tx: Tx, desk: Desk, pairs: Collection[tuple[UUID, str]], cash: Decimal) -> None:
        """Load and lock accounts, opened with so much cash where they are new, and what they hold of underlyings."""
        ids = sorted({account_id for account_id, _ in pairs})
        if not ids:
            return
        rows = await tx.fetch(_PURSES, ids=ids)
        if len(rows) < len(ids):
            await tx.execute(_OPEN, ids=ids, cash=cash)
            rows = await tx.fetch(_PURSES, ids=ids)
        desk.purses.update({row["id"]: rows_of.purse(row) for row in rows})
        given = sorted(pairs)
        held = await tx.fetch(_HOLDINGS, accounts=[one for one, _ in given], underlyings=[name for _, name in given])
        for row in held:
            family = desk.holdings.setdefault((row["account_id"], row["underlying"]), {})
            family[row["symbol"]] = rows_of.holding(row)

    async def load_tickets(self, tx: Tx, desk: Desk, ids: Collection[UUID]) -> None:
        """Load orders by id, and those that they are to replace."""
        wanted = set(ids) - desk.tickets.keys()
        while wanted:
            rows = await tx.fetch(_TICKETS, ids=list(wanted))
            found = {row["id"]: rows_of.ticket(row) for row in rows}
            desk.tickets.update(found)
            wanted = {one.replaces for one in found.values() if one.state == "pending" and one.replaces is not None}
            wanted -= desk.tickets.keys()

    async def load_quoted(self, tx: Tx, desk: Desk, underlyings: Collection[str], quotes: list[dict[str, Any]]) -> None:
        """Load the working orders that these quotes may move, and those that they are to replace."""
        rows = await tx.fetch(_QUOTED, underlyings=list(underlyings), quotes=quotes)
        desk.tickets.update({row["id"]: rows_of.ticket(row) for row in rows})
        pending = [one for one in desk.tickets.values() if one.state == "pending"]
        await self.load_tickets(tx, desk, [one.replaces for one in pending if one.replaces is not None])

    async def load_naming(self, tx: Tx, desk: Desk, instruments: Collection[Instrument]) -> None:
        """Load the working orders that name one of these instruments."""
        underlyings, symbols = {of.underlying for of in instruments}, [of.key for of in instruments]
        rows = await tx.fetch(_NAMING, underlyings=list(underlyings), symbols=symbols)
        desk.tickets.update({row["id"]: rows_of.ticket(row) for row in rows})

    async def save(self, tx: Tx, desk: Desk, now: datetime) -> None:
        """Write back what the desk changed."""
        if books := [rows_of.book_row(key, desk.books[key]) for key in sorted(desk.taken)]:
            await tx.execute(_SAVE_BOOKS, rows=books)
        if orders := [rows_of.order_row(desk.tickets[one]) for one in sorted(desk.touched)]:
            await tx.execute(_SAVE_ORDERS, rows=orders)
        if desk.executions:
            await tx.execute(_SAVE_EXECUTIONS, rows=[rows_of.execution_row(*one) for one in desk.executions])
        if held := [row for who in sorted(desk.moved) for row in rows_of.holding_rows(who[0], desk.holdings[who])]:
            await tx.execute(_SAVE_HOLDINGS, rows=held)
        if desk.frames:
            await tx.execute(_SAVE_FRAMES, rows=[rows_of.frame_row(one) for one in desk.frames], now=now)
        if desk.moved or desk.frames:
            await tx.execute(_SAVE_PURSES, rows=[rows_of.purse_row(one) for one in desk.purses.values()])

    async def save_facts(self, tx: Tx, facts: Iterable[tuple[UUID, PositionFact]]) -> None:
        """Write down what became of options."""
        if rows := [rows_of.fact_row(account_id, fact) for account_id, fact in facts]:
            await tx.execute(_SAVE_FACTS, rows=rows)

    async def open(self, tx: Tx, account_id: UUID, cash: Decimal) -> None:
        """Open an account with so much cash, unless it is there."""
        await tx.execute(_OPEN, ids=[account_id], cash=cash)

    async def forget(self, tx: Tx, before: datetime) -> None:
        """Delete some of the frames that are older."""
        await tx.execute(_FORGET, before=before)

    # Questions

    async def due(self, tx: Tx, now: datetime, most: int) -> dict[UUID, str]:
        """Return orders that the clock has to do with by now, and their underlyings."""
        return {row["id"]: row["underlying"] for row in await tx.fetch(_DUE, now=now, most=most)}

    async def expiring(self, tx: Tx, day: date, underlyings: Collection[str]) -> list[tuple[UUID, Option]]:
        """Return who holds or has working orders of which options that expire by this day."""
        rows = await tx.fetch(_EXPIRING, day=day, underlyings=list(underlyings))
        found = [(row["account_id"], instrument(row["symbol"], row["underlying"])) for row in rows]
        return [(one, of) for one, of in found if isinstance(of, Option) and of.expires_on <= day]

    async def order(self, tx: Tx, account_id: UUID, order_id: UUID) -> Row | None:
        """Return an order of the account, if the venue ever worked or refused it."""
        rows = await tx.fetch(_TICKETS, ids=[order_id])
        untold = {"pending", "void"}
        return next((row for row in rows if row["account_id"] == account_id and row["state"] not in untold), None)

    async def changed(self, tx: Tx, account_id: UUID, since: datetime) -> list[Row]:
        """Return the orders of an account that work or have changed since."""
        return await tx.fetch(_CHANGED, account_id=account_id, since=since)

    async def executions(self, tx: Tx, ids: Collection[UUID]) -> dict[UUID, list[Execution]]:
        """Return the executions of orders."""
        found: dict[UUID, list[Execution]] = {}
        for row in await tx.fetch(_EXECUTIONS, ids=list(ids)):
            found.setdefault(row["order_id"], []).append(rows_of.execution(row))
        return found

    async def facts(self, tx: Tx, account_id: UUID, since: datetime) -> list[PositionFact]:
        """Return what became of an account's options since."""
        return [rows_of.fact(row) for row in await tx.fetch(_FACTS, account_id=account_id, since=since)]

    async def held(self, tx: Tx, account_id: UUID) -> list[tuple[Instrument, Decimal]]:
        """Return what an account holds."""
        rows = await tx.fetch(_HELD, account_id=account_id)
        return [(instrument(row["symbol"], row["underlying"]), row["quantity"]) for row in rows]

    async def purse(self, tx: Tx, account_id: UUID) -> Purse | None:
        """Return an account's money; None before its first order."""
        row = await tx.fetchrow(_PURSE, id=account_id)
        return None if row is None else rows_of.purse(row)

    async def known(self, tx: Tx, symbols: Collection[str]) -> set[str]:
        """Return which of the instruments were ever quoted."""
        return {row["symbol"] for row in await tx.fetch(_BOOKS, symbols=list(symbols))}

    async def frames(self, tx: Tx, after: list[tuple[UUID, int]]) -> list[tuple[int, int, UUID, Report]]:
        """Return new frames of accounts after a number each: (place in `after`, number, order, report)."""
        rows = await tx.fetch(_NEW_FRAMES, ids=[one for one, _ in after], lasts=[last for _, last in after])
        return [(row["place"] - 1, row["number"], row["order_id"], rows_of.report(row["report"])) for row in rows]
