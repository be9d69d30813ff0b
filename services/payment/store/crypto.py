"""Invoices paid on a chain, and their states as they were."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.payment.domain.crypto import Block, Verdict
from shared.db import Row, Tx

_LOCK_CHAIN: Final = text("select pg_advisory_xact_lock(hashtextextended('payment/chain/' || cast(:chain as text), 0))")
_ADD: Final = text("""
    insert into crypto_invoices (id, user_id, plan, renews, price_usd, chain, asset, decimals, address, shared, amount,
        rate_usd, rate_source, rate_at, confirmations, refund_address, held_until, created_at, expires_at, updated_at)
    values (:id, :user_id, :plan, :renews, :price_usd, :chain, :asset, :decimals, :address, :shared, :amount,
        :rate_usd, :rate_source, :rate_at, :confirmations, :refund_address, :held_until, :now, :expires_at, :now)
    returning *""")
_GET: Final = text("select * from crypto_invoices where id = :id")
_LOCK: Final = text("select * from crypto_invoices where id = :id for update")
_PAGE: Final = text("""
    select * from crypto_invoices where user_id = :user_id
      and (cast(:before_at as timestamptz) is null
           or (created_at, id) < (cast(:before_at as timestamptz), cast(:before_id as uuid)))
    order by created_at desc, id desc limit :most""")
_COUNTS: Final = text("""
    select count(*) filter (where state in ('new', 'seen', 'confirming') and expires_at > :now) as open,
           count(*) as held, min(held_until) as free_at
    from crypto_invoices where user_id = :user_id and held and granted_until is null""")
_HELD: Final = text("select address from crypto_invoices where chain = :chain and held and not shared")
_TAKEN: Final = text("""
    select amount from crypto_invoices
    where chain = :chain and address = :address and asset = :asset and held and shared""")
_WATCHED: Final = text("select distinct address from crypto_invoices where chain = :chain and held order by address")
_DUE: Final = text("""
    select id from crypto_invoices
    where chain = :chain and ((state = 'paid_late' and worth_usd is null) or (held and (
        state in ('new', 'seen', 'confirming', 'paid_partial') or problem is not null or held_until <= :now)))
    union
    select invoice_id from crypto_receipts
    where chain = :chain and invoice_id is not null and (not settled or not final)""")
_JUDGED: Final = text("""
    update crypto_invoices set state = :state, received = :received, confirmed = :confirmed,
        worth_usd = cast(:worth_usd as numeric), subscription_id = cast(:subscription_id as uuid),
        granted_from = cast(:granted_from as timestamptz), granted_until = cast(:granted_until as timestamptz),
        grants = :grants, problem = cast(:problem as text), held = :held, updated_at = :now
    where id = :id""")
_REMEMBER: Final = text("""
    insert into crypto_history (invoice_id, at, state, received, confirmed)
    values (:id, :now, :state, :received, :confirmed)""")
_HISTORY: Final = text("select at, state, received, confirmed from crypto_history where invoice_id = :id order by id")
_LATE: Final = text("""
    select distinct asset from crypto_invoices
    where chain = :chain and (held or state = 'paid_late') and worth_usd is null and expires_at <= :now
      and state in ('seen', 'confirming', 'paid_partial', 'paid_late')""")
_TELL: Final = text("""
    insert into crypto_told (chain, tx, invoice_id, told_at) values (:chain, :tx, :invoice_id, :now)
    on conflict (chain, tx, invoice_id) do update set told_at = excluded.told_at, looked_at = null, result = 'waiting'
        where crypto_told.result <> 'waiting'""")
_TAKE_TOLD: Final = text("""
    update crypto_told set looked_at = :now where (chain, tx, invoice_id) in (
        select chain, tx, invoice_id from crypto_told where chain = :chain and result = 'waiting'
        order by looked_at nulls first, told_at limit 100)
    returning *""")
_WAITING_OF: Final = text("""
    select count(*) as told from crypto_told join crypto_invoices on crypto_invoices.id = crypto_told.invoice_id
    where user_id = :user_id and result = 'waiting' and tx <> :tx""")
_TOLD_OF: Final = text("select tx, told_at, result from crypto_told where invoice_id = :id order by told_at, tx")
_ANSWER_TOLD: Final = text("""
    update crypto_told set result = :result where chain = :chain and tx = :tx and result = 'waiting'""")
_POSITION: Final = text("select * from crypto_chains where chain = :chain")
_MOVE: Final = text("""
    insert into crypto_chains (chain, cursor, cursor_hash, head, problem, read_at)
    values (:chain, :cursor, :cursor_hash, :head, null, :now)
    on conflict (chain) do update set cursor = excluded.cursor, cursor_hash = excluded.cursor_hash,
        head = excluded.head, problem = null, read_at = excluded.read_at""")
_PROBLEM: Final = text("update crypto_chains set problem = :problem where chain = :chain")


class CryptoStore:
    """Reads and writes invoices, told transactions and how far each chain was read."""

    async def lock_chain(self, tx: Tx, chain: str) -> None:
        """Take what serialises the choice of addresses and amounts, until the commit."""
        await tx.execute(_LOCK_CHAIN, chain=chain)

    async def add(self, tx: Tx, invoice: Mapping[str, Any]) -> Row:
        """Add an invoice; its fields are the columns that have no default."""
        row = await tx.fetchrow(_ADD, **(dict(invoice) | {"amount": Decimal(invoice["amount"])}))
        assert row is not None  # noqa: S101 - an insert without a conflict clause returns its row
        return row

    async def get(self, tx: Tx, invoice_id: UUID) -> Row | None:
        """Return an invoice."""
        return await tx.fetchrow(_GET, id=invoice_id)

    async def lock(self, tx: Tx, invoice_id: UUID) -> Row | None:
        """Return an invoice that nobody else changes until the commit."""
        return await tx.fetchrow(_LOCK, id=invoice_id)

    async def page(self, tx: Tx, user_id: UUID, most: int, before: tuple[datetime, UUID] | None) -> list[Row]:
        """Return a user's invoices, newest first, those after `before`."""
        at, last = before or (None, None)
        return await tx.fetch(_PAGE, user_id=user_id, most=most, before_at=at, before_id=last)

    async def counts(self, tx: Tx, user_id: UUID, now: datetime) -> Row:
        """Return how many invoices that gave nothing a user has open, how many hold an address, and until when one."""
        row = await tx.fetchrow(_COUNTS, user_id=user_id, now=now)
        assert row is not None  # noqa: S101 - an aggregate always has its row
        return row

    async def held_addresses(self, tx: Tx, chain: str) -> set[str]:
        """Return the addresses that are somebody's now."""
        return {row["address"] for row in await tx.fetch(_HELD, chain=chain)}

    async def taken_amounts(self, tx: Tx, chain: str, address: str, asset: str) -> set[int]:
        """Return the exact amounts that are somebody's now on a shared address."""
        return {int(row["amount"]) for row in await tx.fetch(_TAKEN, chain=chain, address=address, asset=asset)}

    async def watched(self, tx: Tx, chain: str) -> list[str]:
        """Return the addresses that payments may still come to."""
        return [row["address"] for row in await tx.fetch(_WATCHED, chain=chain)]

    async def due(self, tx: Tx, chain: str, now: datetime) -> list[UUID]:
        """Return the invoices that may be something else by now."""
        return [row["id"] for row in await tx.fetch(_DUE, chain=chain, now=now)]

    async def late_assets(self, tx: Tx, chain: str, now: datetime) -> list[str]:
        """Return the assets whose worth decides about late payments now."""
        return [row["asset"] for row in await tx.fetch(_LATE, chain=chain, now=now)]

    async def judged(
        self, tx: Tx, row: Row, verdict: Verdict, grant: Mapping[str, Any], *, held: bool, now: datetime
    ) -> None:
        """Write what an invoice is now; what changed for people goes into its history."""
        fresh: dict[str, Any] = {
            "id": row["id"],
            "state": verdict.state,
            "received": Decimal(verdict.received),
            "confirmed": Decimal(verdict.confirmed),
            "now": now,
        }
        if any(row[name] != fresh[name] for name in ("state", "received", "confirmed")):
            await tx.execute(_REMEMBER, **fresh)
        await tx.execute(_JUDGED, **fresh, **grant, held=held)

    async def history(self, tx: Tx, invoice_id: UUID) -> list[Row]:
        """Return the states that an invoice was in, oldest first; the first, new, is not among them."""
        return await tx.fetch(_HISTORY, id=invoice_id)

    async def tell(self, tx: Tx, chain: str, transaction: str, invoice_id: UUID, now: datetime) -> None:
        """Note a transaction that a customer tells of, to be looked for."""
        await tx.execute(_TELL, chain=chain, tx=transaction, invoice_id=invoice_id, now=now)

    async def take_told(self, tx: Tx, chain: str, now: datetime) -> list[Row]:
        """Return transactions to look for now: of those that wait, the ones that were not looked for the longest."""
        return await tx.fetch(_TAKE_TOLD, chain=chain, now=now)

    async def waiting_of(self, tx: Tx, user_id: UUID, besides: str) -> int:
        """Return how many transactions are looked for that a user has told of, besides one."""
        row = await tx.fetchrow(_WAITING_OF, user_id=user_id, tx=besides)
        assert row is not None  # noqa: S101 - an aggregate always has its row
        return row["told"]

    async def told_of(self, tx: Tx, invoice_id: UUID) -> list[Row]:
        """Return the transactions that a customer told of, and what came of each."""
        return await tx.fetch(_TOLD_OF, id=invoice_id)

    async def answer_told(self, tx: Tx, chain: str, transaction: str, result: str) -> None:
        """End the search for a transaction."""
        await tx.execute(_ANSWER_TOLD, chain=chain, tx=transaction, result=result)

    async def position(self, tx: Tx, chain: str) -> Row | None:
        """Return how far a chain was read; None before the first time."""
        return await tx.fetchrow(_POSITION, chain=chain)

    async def move(self, tx: Tx, chain: str, read: Block, head: int, now: datetime) -> None:
        """Note how far a chain was read."""
        await tx.execute(_MOVE, chain=chain, cursor=read.number, cursor_hash=read.hash, head=head, now=now)

    async def problem(self, tx: Tx, chain: str, problem: str) -> None:
        """Note why a chain must not be used."""
        await tx.execute(_PROBLEM, chain=chain, problem=problem)
