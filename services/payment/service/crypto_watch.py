"""Reads a chain for payments, so that they are found without being told of, and looks again until they are final.

A round asks the chain first, without a transaction, and writes what it heard in short ones. Whatever stops it, the
next round begins where the last one had written: a receipt is one row however often it is seen.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.payment.domain.chains import Chain
from services.payment.domain.crypto import LOOK_FOR, LOST, Block, Transfer
from services.payment.ports import ChainReader, RateUnavailable, WrongChain
from services.payment.service.crypto import CryptoInvoices
from services.payment.service.settlement import UNMATCHED, Settlement
from services.payment.store.crypto import CryptoStore
from services.payment.store.receipts import ReceiptStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.errors import Transient
from shared.messaging.door import Door

log = logging.getLogger(__name__)

SPAN: Final = 500
"""Blocks that are asked for at once."""

_SKEW: Final = {"evm": timedelta(minutes=1), "bitcoin": timedelta(hours=2)}
"""How far a block's time may lie before that of an invoice that it pays: miners' clocks."""


class CryptoWatch:
    """Watches one chain."""

    def __init__(
        self,
        chain: Chain,
        reader: ChainReader,
        store: CryptoStore,
        receipts: ReceiptStore,
        *,
        invoices: CryptoInvoices,
        settlement: Settlement,
        door: Door,
        clock: Clock,
    ) -> None:
        self._chain = chain
        self._reader = reader
        self._store = store
        self._receipts = receipts
        self._invoices = invoices
        self._settlement = settlement
        self._door = door
        self._clock = clock
        UNMATCHED.labels(chain.name)  # from zero on, or the first one would be no increase

    @property
    def name(self) -> str:
        """The chain's name."""
        return self._chain.name

    async def round(self) -> None:
        """Read what is new, look again at what is not final, and judge the invoices. Raises WrongChain, Transient."""
        try:
            await self._reader.check()
        except WrongChain as error:
            async with self._door.transaction() as tx:
                await self._store.problem(tx, self.name, error.message)
            raise
        head = await self._reader.head()
        await self._scan(head)
        await self._look_for_told()
        await self._check_again(head)
        await self._settle(head)

    async def close(self) -> None:
        """Give up the reader's connections."""
        await self._reader.close()

    async def _scan(self, head: Block) -> None:
        async with self._door.read() as tx:
            position = await self._store.position(tx, self.name)
            addresses = await self._store.watched(tx, self.name)
        if position is None or not addresses:
            await self._move(head, head)
            return
        first = await self._first(position, head)
        while first <= head.number:
            last = min(first + SPAN - 1, head.number)
            found = await self._reader.transfers(first, last, addresses)
            end = head if last == head.number else Block(last, await self._reader.hash_of(last) or "", head.time)
            await self._note(found)
            await self._move(end, head)
            first = last + 1

    async def _first(self, position: Row, head: Block) -> int:
        """Return where reading begins: a little before the last block read; far before it after a reorganisation.

        The newest block is always read, for what waits in the mempool is asked for with it.
        """
        cursor: int = position["cursor"]
        same = cursor <= head.number and await self._reader.hash_of(cursor) == position["cursor_hash"]
        back = self._chain.rescan if same else self._chain.finality
        return max(0, min(min(cursor, head.number) + 1 - back, head.number))

    async def _move(self, read: Block, head: Block) -> None:
        async with self._door.transaction() as tx:
            await self._store.move(tx, self.name, read, head.number, self._clock())

    async def _note(self, found: Sequence[Transfer]) -> None:
        if not found:
            return
        now = self._clock()
        async with self._door.transaction() as tx:
            for transfer in found:
                await self._receipts.note(tx, self.name, transfer, now, _SKEW[self._chain.kind])

    async def _look_for_told(self) -> None:
        async with self._door.transaction() as tx:
            told = await self._store.take_told(tx, self.name, self._clock())
        ours = await self._ours()
        for row in told:
            found = await self._reader.transaction(row["tx"], ours)
            if found is None and self._clock() < row["told_at"] + LOOK_FOR:
                continue
            await self._note(found or ())
            result = "not_found" if found is None else "found" if found else "not_ours"
            async with self._door.transaction() as tx:
                await self._store.answer_told(tx, self.name, row["tx"], result)

    async def _check_again(self, head: Block) -> None:
        """See for each receipt that is not final whether the chain still holds it where it was."""
        async with self._door.read() as tx:
            known = await self._receipts.open(tx, self.name)
        hashes: dict[int, str | None] = {}
        for row in known:
            number: int | None = row["block_number"]
            if number is not None and number not in hashes:
                hashes[number] = await self._reader.hash_of(number)
            if number is not None and number <= head.number and hashes[number] is None:
                continue  # the node that answered is behind the one that told the head: nothing is known of it now
            if number is None or hashes[number] != row["block_hash"]:
                await self._find_again(row)
            elif head.number - number + 1 >= self._chain.finality:
                async with self._door.transaction() as tx:
                    await self._receipts.finish(tx, row)

    async def _find_again(self, row: Row) -> None:
        by_balance = "/" in row["tx"]  # such a receipt is its block's: no transaction can be asked for
        found = None if by_balance else await self._reader.transaction(row["tx"], await self._ours())
        await self._note(found or ())
        if any(one.index == row["idx"] for one in found or ()):
            return
        now = self._clock()
        for_good = found is not None or (row["lost_at"] is not None and now >= row["lost_at"] + LOST)
        if by_balance and not for_good:
            async with self._door.read() as tx:
                for_good = await self._receipts.replaced(tx, row)
        if for_good or row["status"] != "lost":
            async with self._door.transaction() as tx:
                await self._receipts.lose(tx, row, now, for_good=for_good)

    async def _ours(self) -> Sequence[str]:
        """Return our addresses: those that are configured, and those that were when an invoice was made."""
        async with self._door.read() as tx:
            return sorted({*self._chain.our_addresses, *await self._store.watched(tx, self.name)})

    async def _settle(self, head: Block) -> None:
        now = self._clock()
        async with self._door.read() as tx:
            due = await self._store.due(tx, self.name, now)
            late = await self._store.late_assets(tx, self.name, now)
        worth = await self._worth(late)
        failed = 0
        for invoice_id in due:
            try:
                await self._door.publish(lambda tx, one=invoice_id: self._judged(tx, one, head.number, worth))
            except Exception:  # one invoice that cannot be judged does not keep the others waiting
                failed += 1
                log.exception("crypto_invoice_not_judged", extra={"invoice": str(invoice_id), "chain": self.name})
        decimals = {asset.symbol: asset.decimals for asset in self._chain.assets}
        await self._door.publish(lambda tx: self._settlement.book_strays(tx, self.name, decimals))
        if failed:
            raise Transient(f"{failed} of {len(due)} invoices could not be judged; the log says why")

    async def _judged(self, tx: Tx, invoice_id: UUID, head: int, worth: dict[str, Decimal]) -> Sequence[Event]:
        return await self._settlement.settle(tx, invoice_id, head, worth)

    async def _worth(self, symbols: Sequence[str]) -> dict[str, Decimal]:
        """Return USD for one unit of each asset; without those whose rate is not known now."""
        worth: dict[str, Decimal] = {}
        for symbol in symbols:
            asset = self._chain.asset(symbol)
            if asset is None:
                continue
            try:
                worth[symbol] = (await self._invoices.rate(asset)).usd
            except RateUnavailable:
                continue
        return worth
