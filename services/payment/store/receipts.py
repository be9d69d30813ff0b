"""What came in on chains: one row for each (chain, transaction, log or output), never deleted."""

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import text

from services.payment.domain.crypto import Transfer
from shared.db import Row, Tx

_NOTE: Final = text("""
    insert into crypto_receipts as known (chain, tx, idx, asset, address, amount, sender, status, block_number,
        block_hash, mined_at, at, created_at, updated_at)
    values (:chain, :tx, :idx, :asset, :address, :amount, cast(:sender as text), :status, cast(:number as bigint),
        cast(:hash as text), cast(:mined_at as timestamptz), :at, :now, :now)
    on conflict (chain, tx, idx) do update set amount = excluded.amount, asset = excluded.asset,
        address = excluded.address, status = excluded.status, block_number = excluded.block_number,
        block_hash = excluded.block_hash, mined_at = excluded.mined_at,
        at = least(known.at, excluded.at), lost_at = null, settled = false,
        final = false, updated_at = excluded.updated_at,
        invoice_id = case when (known.address, known.asset, known.amount)
            = (excluded.address, excluded.asset, excluded.amount) or known.booked is not null
            then known.invoice_id end
    where (known.amount, known.asset, known.address, known.status, known.block_hash)
        is distinct from (excluded.amount, excluded.asset, excluded.address, excluded.status, excluded.block_hash)""")
_MATCH: Final = text("""
    update crypto_receipts set invoice_id = (
        select id from crypto_invoices
        where chain = :chain and address = crypto_receipts.address and asset = crypto_receipts.asset
          and (not shared or amount = crypto_receipts.amount) and created_at <= crypto_receipts.at + :skew
        order by created_at desc limit 1)
    where chain = :chain and tx = :tx and idx = :idx and invoice_id is null and booked is null""")
_OPEN: Final = text("""
    select * from crypto_receipts
    where chain = :chain and not final and status <> 'dropped' order by block_number nulls last, tx, idx""")
_LOSE: Final = text("""
    update crypto_receipts set status = :status, lost_at = coalesce(lost_at, :now), block_number = null,
        block_hash = null, mined_at = null, settled = false, final = :status = 'dropped', updated_at = :now
    where chain = :chain and tx = :tx and idx = :idx""")
_FINAL: Final = text("update crypto_receipts set final = true where chain = :chain and tx = :tx and idx = :idx")
_OF: Final = text("select * from crypto_receipts where invoice_id = :id order by created_at, tx, idx for update")
_SHOWN: Final = text("select * from crypto_receipts where invoice_id = :id order by created_at, tx, idx")
_SETTLED: Final = text("update crypto_receipts set settled = true where invoice_id = :id")
_BOOKED: Final = text("""
    update crypto_receipts set booked = cast(:booked as numeric), bookings = :bookings, settled = true
    where chain = :chain and tx = :tx and idx = :idx""")
_STRAY: Final = text("""
    select * from crypto_receipts where chain = :chain and invoice_id is null and not settled
      and ((final and status = 'mined') or (status = 'dropped' and booked is not null)) for update""")
_REPLACED: Final = text("""
    select exists (select from crypto_receipts where chain = :chain and address = :address and idx = :idx
        and asset = :asset and status = 'mined' and created_at > :since)""")
_UNMATCHED: Final = text("""
    select * from crypto_receipts where invoice_id is null and status <> 'dropped'
    order by created_at desc, tx, idx limit :most""")
_ONE: Final = text("select * from crypto_receipts where chain = :chain and tx = :tx and idx = :idx for update")
_ASSIGN: Final = text("""
    update crypto_receipts set invoice_id = :invoice_id, settled = false
    where chain = :chain and tx = :tx and idx = :idx""")


class ReceiptStore:
    """Reads and writes receipts."""

    async def note(self, tx: Tx, chain: str, transfer: Transfer, now: datetime, skew: timedelta) -> None:
        """Write what is known of a transfer, and find the invoice it pays.

        A reorganisation may put another transfer in its place, for log indexes count within a block: unless it is
        booked, that one is looked for an invoice of its own.
        """
        block = transfer.block
        key: dict[str, Any] = {"chain": chain, "tx": transfer.tx, "idx": transfer.index}
        changed = await tx.execute(
            _NOTE,
            **key,
            asset=transfer.asset,
            address=transfer.address,
            amount=Decimal(transfer.amount),
            sender=transfer.sender,
            status="mined" if block else "seen",
            number=block.number if block else None,
            hash=block.hash if block else None,
            mined_at=block.time if block else None,
            at=min(now, block.time) if block else now,
            now=now,
        )
        if changed:
            await tx.execute(_MATCH, **key, skew=skew)

    async def open(self, tx: Tx, chain: str) -> list[Row]:
        """Return receipts that the chain may still move or take back."""
        return await tx.fetch(_OPEN, chain=chain)

    async def lose(self, tx: Tx, row: Row, now: datetime, *, for_good: bool) -> None:
        """Note that the chain does not hold a receipt now: it may come back, or not be looked for any more."""
        status = "dropped" if for_good else "lost"
        await tx.execute(_LOSE, chain=row["chain"], tx=row["tx"], idx=row["idx"], status=status, now=now)

    async def replaced(self, tx: Tx, row: Row) -> bool:
        """Whether the chain holds something of the same kind at the same address that was noted later."""
        about = {name: row[name] for name in ("chain", "address", "idx", "asset")}
        return bool(await tx.fetchval(_REPLACED, **about, since=row["created_at"]))

    async def finish(self, tx: Tx, row: Row) -> None:
        """Note that a receipt lies too deep to be taken back."""
        await tx.execute(_FINAL, chain=row["chain"], tx=row["tx"], idx=row["idx"])

    async def of(self, tx: Tx, invoice_id: UUID) -> list[Row]:
        """Return an invoice's receipts, locked."""
        return await tx.fetch(_OF, id=invoice_id)

    async def shown(self, tx: Tx, invoice_id: UUID) -> list[Row]:
        """Return an invoice's receipts."""
        return await tx.fetch(_SHOWN, id=invoice_id)

    async def settled(self, tx: Tx, invoice_id: UUID) -> None:
        """Note that the invoice was judged by its receipts as they are."""
        await tx.execute(_SETTLED, id=invoice_id)

    async def booked(self, tx: Tx, row: Row, booked: Decimal | None, bookings: int) -> None:
        """Note how much of a receipt stands in the ledger."""
        await tx.execute(_BOOKED, chain=row["chain"], tx=row["tx"], idx=row["idx"], booked=booked, bookings=bookings)

    async def stray(self, tx: Tx, chain: str) -> list[Row]:
        """Return receipts without an invoice that the ledger has to hear of."""
        return await tx.fetch(_STRAY, chain=chain)

    async def unmatched(self, tx: Tx, most: int) -> list[Row]:
        """Return receipts that pay no invoice, newest first."""
        return await tx.fetch(_UNMATCHED, most=most)

    async def one(self, tx: Tx, chain: str, transaction: str, index: int) -> Row | None:
        """Return a receipt, locked."""
        return await tx.fetchrow(_ONE, chain=chain, tx=transaction, idx=index)

    async def assign(self, tx: Tx, row: Row, invoice_id: UUID) -> None:
        """Make a receipt an invoice's."""
        await tx.execute(_ASSIGN, chain=row["chain"], tx=row["tx"], idx=row["idx"], invoice_id=invoice_id)
