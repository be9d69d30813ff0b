"""Writing to the ledger, and reading it out as CSV."""

import csv
import io
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from prometheus_client import Counter

from services.payment.domain.ledger import Entry, of_balance_transaction, of_receipt
from services.payment.domain.money import Money, whole
from services.payment.service.settlement import CryptoMovement
from services.payment.store.ledger import LedgerStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.messaging.door import Door

ENTRIES: Final = Counter("openbell_payment_ledger_entries_total", "Entries added to the ledger", ["kind"])

PAGE: Final = 1000
"""Entries that are read at once."""

COLUMNS: Final = ("at", "entry", "kind", "about", "user_id", "account", "currency", "debit", "credit")
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")


class Ledger:
    """Adds entries, each once; the transaction that adds one is the transaction of what it stands for."""

    def __init__(self, store: LedgerStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def add(self, tx: Tx, entry: Entry | None) -> bool:
        """Add an entry; whether it is new."""
        if entry is None or not await self._store.add(tx, entry, self._clock()):
            return False
        tx.after_commit(ENTRIES.labels(entry.kind).inc)
        return True

    async def add_transactions(self, tx: Tx, found: Iterable[object], user_id: UUID | None = None) -> None:
        """Add Stripe's balance transactions; what is told by its id alone waits for the comparison with Stripe."""
        for one in found:
            if isinstance(one, Mapping):
                await self.add(tx, of_balance_transaction(one, user_id))  # pyright: ignore[reportUnknownArgumentType]

    async def add_coins(self, tx: Tx, moved: CryptoMovement) -> Sequence[Event]:
        """Add coins received, or taken back; tells nothing, for their invoice does."""
        sign = -1 if moved.kind == "reversed" else 1
        coins = Money(sign * whole(moved.amount, moved.decimals), moved.asset, moved.decimals)
        value = None if moved.worth_usd is None else Money(sign * whole(moved.worth_usd, 2), "USD", 2)
        key = moved.reference if sign > 0 else f"{moved.reference}/reversed"
        about = moved.reference if moved.invoice_id is None else f"crypto/{moved.invoice_id}"
        await self.add(tx, of_receipt(key, coins, value, at=moved.at, about=about, user_id=moved.user_id))
        return ()

    async def user_of(self, tx: Tx, about: str) -> tuple[bool, UUID | None]:
        """Return whether something moved for that object of a provider, and whose it was."""
        row = await self._store.about(tx, about)
        return row is not None, row["user_id"] if row is not None else None


async def export(
    store: LedgerStore, door: Door, since: datetime, until: datetime, *, page: int = PAGE
) -> AsyncGenerator[bytes]:
    """Yield the postings of [since, until) as CSV, in the order in which money moved, a page of entries at a time.

    Amounts are in units of the currency with all its decimals, never below zero. A text that a spreadsheet would take
    for a formula begins with an apostrophe.
    """
    yield _csv([COLUMNS])
    after = since, ""
    while True:
        async with door.read() as tx:
            rows = await store.page(tx, since, until, after, page)
        if not rows:
            return
        yield _csv(_line(row) for row in rows)
        after = rows[-1]["at"], rows[-1]["key"]


def harmless(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def _line(row: Row) -> tuple[str, ...]:
    money = Money(abs(int(row["amount"])), row["currency"], row["exponent"])
    texts = (row["key"], row["kind"], row["about"], str(row["user_id"] or ""), row["account"], row["currency"])
    amount = f"{money.units:f}"
    sides = (amount, "") if row["amount"] > 0 else ("", amount)
    return (row["at"].isoformat(), *(harmless(text) for text in texts), *sides)


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode()
