"""Orders, what is to be said of them to venues, and flags."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

from sqlalchemy import text

from services.broker.domain import shapes
from services.broker.domain.lifecycle import filled
from services.broker.domain.orders import ZERO, Order, Terms
from services.broker.ports import Account
from shared.contracts.broker import OrderTerms
from shared.db import Row, Tx
from shared.retention import Transaction, forget, slice_of
from shared.work import start

Sending = Literal["submit", "cancel", "replace", "look_up"]

_ADD: Final = text("""
    insert into orders (id, account_id, user_id, venue, state, symbols, terms, replaces, closes, parent, created_at,
        updated_at)
    values (:id, :account_id, :user_id, :venue, 'new', :symbols, cast(:terms as jsonb), :replaces, :closes,
        cast(:parent as uuid), cast(:at as timestamptz), :at)
    on conflict (id) do nothing""")
_GET: Final = text("""
    select o.*, a.mode, a.reference, a.balance_at from orders o join accounts a on a.id = o.account_id
    where o.id = :id""")
_LOCK: Final = text("""
    select o.*, a.mode, a.reference from orders o join accounts a on a.id = o.account_id
    where o.id = :id for no key update of o""")
_LOCK_BOTH: Final = text("""
    select o.*, a.mode, a.reference from orders o join accounts a on a.id = o.account_id
    where o.id = :id or o.id = (select own.replaces from orders own where own.id = :id)
    order by o.id for no key update of o""")
_LOCK_ALL: Final = text("select * from orders where id = any(:ids) order by id for no key update")
_SAVE: Final = text("""
    update orders o set state = r.state, terms = r.terms, submits = r.submits, seen = r.seen,
        said_filled = r.said_filled, cancel_wanted = r.cancel_wanted, venue_order_id = r.venue_order_id,
        replaced_by = r.replaced_by, reason = r.reason, executions = r.executions, cumulative = r.cumulative,
        filled = r.filled, reserved = coalesce(r.reserved, o.reserved), version = o.version + 1, updated_at = :at,
        sent_at = case when r.submits > o.submits then :at else o.sent_at end
    from jsonb_to_recordset(cast(:rows as jsonb)) as r (id uuid, state text, terms jsonb, submits integer, seen boolean,
        said_filled boolean, cancel_wanted boolean, venue_order_id text, replaced_by uuid, reason text,
        executions jsonb, cumulative jsonb, filled numeric, reserved numeric)
    where o.id = r.id and o.id = any(:ids) returning o.id, o.version""")
# `any` says nothing new; without it Postgres, which takes a record set for 100 rows, reads the whole of a small table.
_REFUSE: Final = text("update orders set refusals = cast(:refusals as jsonb) where id = :id")
_OPEN: Final = text("""
    select * from orders
    where account_id = :account_id and state not in ('filled', 'canceled', 'replaced', 'rejected', 'expired')
      and (cast(:symbols as text[]) is null or symbols && cast(:symbols as text[]))
    order by created_at, id""")
_LIST: Final = text("""
    select * from orders
    where account_id = :account_id and (cast(:state as text) is null or state = :state)
      and (cast(:at as timestamptz) is null or (created_at, id) < (cast(:at as timestamptz), cast(:before as uuid)))
    order by created_at desc, id desc limit :most""")
_BUSY: Final = text("""
    select distinct unnest(symbols) as symbol from orders
    where account_id = :account_id and symbols && cast(:symbols as text[])
      and (updated_at > :since or state not in ('filled', 'canceled', 'replaced', 'rejected', 'expired'))""")
_BY_VENUE_ID: Final = text("select id from orders where venue = :venue and venue_order_id = :venue_order_id")
_STUCK: Final = text("""
    select o.* from orders o
    where o.state in ('pending_submit', 'accepted', 'partially_filled', 'pending_cancel', 'unknown')
      and o.updated_at < :before
      and not exists (select from sendings s where s.order_id = o.id and s.status in ('pending', 'claimed', 'started'))
    order by o.updated_at limit :most""")
_SEND: Final = text("""
    insert into sendings (id, order_id, account_id, kind, lane, due_at, created_at)
    select :id, cast(:order_id as uuid), (select account_id from orders where id = :order_id), :kind, :lane,
        cast(:due_at as timestamptz), :at
    where :kind not in ('cancel', 'look_up') or not exists (
        select from sendings where order_id = :order_id and kind = :kind and status = 'pending')
    on conflict do nothing""")
_OURS: Final = text("""
    select exists(select from sendings where id = :id and token = :token and status in ('claimed', 'started'))""")
_GOING: Final = text("""
    select exists(select from sendings where order_id = :order_id and kind in ('submit', 'replace')
        and status in ('pending', 'claimed', 'started'))""")
_UNSENT: Final = text("""
    delete from sendings where order_id = :order_id and kind in ('submit', 'replace') and status = 'pending'
        and not uncertain""")
_START: Final = start("sendings")
_FORGET: Final = slice_of("sendings", "settled_at < :look_ups and (kind = 'look_up' or settled_at < :others)")
_FLAG: Final = text("""
    insert into flags (id, account_id, order_id, code, message, at)
    values (:id, :account_id, :order_id, :code, :message, :at) on conflict do nothing""")
_FLAGS: Final = text("select * from flags where account_id = :account_id order by at desc, id limit :most")


@dataclass(frozen=True, slots=True)
class Stored:
    """An order as it lies in the table."""

    order: Order
    row: Row

    @property
    def user_id(self) -> UUID:
        """Whose it is."""
        user: UUID = self.row["user_id"]
        return user

    @property
    def account(self) -> Account:
        """The account that it is of; `get`, `lock` and `lock_both` read it with the order."""
        row = self.row
        return Account(row["account_id"], row["user_id"], row["venue"], row["mode"], row["reference"])


@dataclass(frozen=True, slots=True)
class Flag:
    """What cannot be, or should not."""

    id: UUID
    account_id: UUID
    order_id: UUID | None
    code: str
    message: str
    at: datetime


class OrderStore:
    """Reads and writes orders. Whoever locks several locks them by their id, so that nobody waits for each other."""

    async def add(
        self,
        tx: Tx,
        order_id: UUID,
        account: Account,
        terms: OrderTerms,
        at: datetime,
        *,
        replaces: UUID | None = None,
        closes: bool = False,
        parent: UUID | None = None,
    ) -> bool:
        """Keep a new order; False when its id is known."""
        return bool(
            await tx.execute(
                _ADD,
                id=order_id,
                account_id=account.id,
                user_id=account.user_id,
                venue=account.venue,
                symbols=[leg.symbol for leg in terms.legs],
                terms=terms.model_dump(mode="json"),
                replaces=replaces,
                closes=closes,
                parent=parent,
                at=at,
            )
        )

    async def get(self, tx: Tx, order_id: UUID) -> Stored | None:
        """Return an order."""
        row = await tx.fetchrow(_GET, id=order_id)
        return None if row is None else stored(row)

    async def lock(self, tx: Tx, order_id: UUID) -> Stored | None:
        """Return an order that nobody else changes until the commit."""
        row = await tx.fetchrow(_LOCK, id=order_id)
        return None if row is None else stored(row)

    async def lock_both(self, tx: Tx, order_id: UUID) -> Stored | None:
        """Return an order that nobody else changes until the commit; the one that it replaces is locked, too."""
        rows = await tx.fetch(_LOCK_BOTH, id=order_id)
        return next((stored(row) for row in rows if row["id"] == order_id), None)

    async def lock_all(self, tx: Tx, order_ids: Collection[UUID]) -> dict[UUID, Stored]:
        """Return orders that nobody else changes until the commit."""
        rows = await tx.fetch(_LOCK_ALL, ids=list(order_ids))
        return {row["id"]: stored(row) for row in rows}

    async def save(
        self, tx: Tx, orders: Collection[Order], at: datetime, reserved: Decimal | None = None
    ) -> Mapping[UUID, int]:
        """Write orders as they are now; return their versions.

        `reserved` is what each takes of the buying power until the venue tells it anew; None leaves that as it was.
        """
        if not orders:
            return {}
        rows = [{**_row(order), "reserved": reserved} for order in orders]
        found = await tx.fetch(_SAVE, rows=rows, ids=[order.id for order in orders], at=at)
        return {row["id"]: row["version"] for row in found}

    async def refused(self, tx: Tx, order_id: UUID, refusals: Sequence[Mapping[str, str]]) -> None:
        """Keep why an order did not go out."""
        await tx.execute(_REFUSE, id=order_id, refusals=[dict(one) for one in refusals])

    async def open(self, tx: Tx, account_id: UUID, symbols: Collection[str] | None = None) -> list[Stored]:
        """Return an account's orders that are not over, or those with a leg in one of the symbols."""
        rows = await tx.fetch(_OPEN, account_id=account_id, symbols=None if symbols is None else list(symbols))
        return [stored(row) for row in rows]

    async def busy(self, tx: Tx, account_id: UUID, symbols: Collection[str], since: datetime) -> set[str]:
        """Return symbols of orders with a leg in one of these that are not over, or that changed since then."""
        rows = await tx.fetch(_BUSY, account_id=account_id, symbols=list(symbols), since=since)
        return {row["symbol"] for row in rows}

    async def page(
        self, tx: Tx, account_id: UUID, state: str | None, before: tuple[datetime, UUID] | None, most: int
    ) -> list[Stored]:
        """Return an account's orders, newest first."""
        at, order_id = before or (None, None)
        rows = await tx.fetch(_LIST, account_id=account_id, state=state, at=at, before=order_id, most=most)
        return [stored(row) for row in rows]

    async def by_venue_id(self, tx: Tx, venue: str, venue_order_id: str) -> Sequence[UUID]:
        """Return the orders that a venue calls so."""
        rows = await tx.fetch(_BY_VENUE_ID, venue=venue, venue_order_id=venue_order_id)
        return [row["id"] for row in rows]

    async def stuck(self, tx: Tx, before: datetime, most: int) -> list[Stored]:
        """Return orders that were sent, are not over, and of which nothing was heard since then."""
        return [stored(row) for row in await tx.fetch(_STUCK, before=before, most=most)]

    async def send(self, tx: Tx, sending_id: UUID, order_id: UUID, kind: Sending, at: datetime) -> None:
        """Write what is to be said to the venue; a wish that waits already is not doubled."""
        await tx.execute(_SEND, id=sending_id, order_id=order_id, kind=kind, lane=str(order_id), due_at=at, at=at)

    async def ours(self, tx: Tx, sending: Row) -> bool:
        """Whether a claimed sending is still whose who claimed it. Lock its order first: then it stays so."""
        return bool(await tx.fetchval(_OURS, id=sending["id"], token=sending["token"]))

    async def start(self, tx: Tx, sending: Row, until: datetime) -> bool:
        """Note that a claimed sending goes out now; tell whether it is still whose who claimed it."""
        ids, tokens = [sending["id"]], [sending["token"]]
        return bool(await tx.fetch(_START, ids=ids, tokens=tokens, until=until))

    async def going(self, tx: Tx, order_id: UUID) -> bool:
        """Whether an order is still being sent: then nobody but its sending says that it never arrived."""
        return bool(await tx.fetchval(_GOING, order_id=order_id))

    async def unsend(self, tx: Tx, order_id: UUID) -> None:
        """Take back a submit that has certainly not begun."""
        await tx.execute(_UNSENT, order_id=order_id)

    async def forget_sendings(self, transaction: Transaction, look_ups: datetime, others: datetime) -> int:
        """Delete look-ups that ended before then, and whatever else was said to venues that ended before `others`."""
        return await forget(transaction, _FORGET, look_ups=look_ups, others=others)

    async def flag(self, tx: Tx, flag: Flag) -> bool:
        """Keep what a person should look at, once; False when its id is known."""
        return bool(
            await tx.execute(
                _FLAG,
                id=flag.id,
                account_id=flag.account_id,
                order_id=flag.order_id,
                code=flag.code,
                message=flag.message[:1000],
                at=flag.at,
            )
        )

    async def flags(self, tx: Tx, account_id: UUID, most: int) -> Sequence[Row]:
        """Return an account's flags, newest first."""
        return await tx.fetch(_FLAGS, account_id=account_id, most=most)


def stored(row: Row) -> Stored:
    """Return a row as the order that it is."""
    executions: list[Any] = row["executions"]
    cumulative: list[Any] = row["cumulative"]
    return Stored(
        Order(
            id=row["id"],
            account_id=row["account_id"],
            venue=row["venue"],
            terms=_terms(row),
            state=row["state"],
            submits=row["submits"],
            seen=row["seen"],
            said_filled=row["said_filled"],
            cancel_wanted=row["cancel_wanted"],
            venue_order_id=row["venue_order_id"],
            replaces=row["replaces"],
            replaced_by=row["replaced_by"],
            reason=row["reason"],
            executions={(one.leg, one.id): one for one in shapes.load_executions(executions)},
            cumulative={one.leg: one for one in shapes.load_cumulative(cumulative)},
        ),
        row,
    )


def rest(order: Order) -> Decimal:
    """Return how many units of an order are still to be filled; nothing is known of one by notional."""
    return ZERO if order.terms.quantity is None else max(order.terms.quantity - filled(order), ZERO)


def _terms(row: Row) -> Terms:
    return shapes.load_terms(row["terms"])


def _row(order: Order) -> Mapping[str, Any]:
    return {
        "id": order.id,
        "state": order.state,
        "terms": shapes.dump_terms(order.terms),
        "submits": order.submits,
        "seen": order.seen,
        "said_filled": order.said_filled,
        "cancel_wanted": order.cancel_wanted,
        "venue_order_id": order.venue_order_id,
        "replaced_by": order.replaced_by,
        "reason": order.reason,
        "executions": shapes.dump_executions(tuple(order.executions.values())),
        "cumulative": shapes.dump_cumulative(tuple(order.cumulative.values())),
        "filled": filled(order),
    }
