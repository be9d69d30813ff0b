"""Writing to the ledger, and reading it out as CSV."""

import csv
import io
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Protocol
from uuid import UUID

from prometheus_client import Counter

from services.payment.domain.ledger import Entry, of_balance_transaction, of_receipt
from services.payment.domain.money import BadAmount, Money
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


class CoinsMoved(Protocol):
    """Coins that came to stay, or that a chain has taken back. `reference` names each once."""

    @property
    def reference(self) -> str:
        """crypto/<chain>/<transaction>/..."""
        ...

    @property
    def kind(self) -> str:
        """`received`, or `reversed`."""
        ...

    @property
    def user_id(self) -> UUID | None:
        """Whose they are, if that is known."""
        ...

    @property
    def invoice_id(self) -> UUID | None:
        """What they paid."""
        ...

    @property
    def asset(self) -> str:
        """The coin's symbol."""
        ...

    @property
    def amount(self) -> Decimal:
        """Units of the coin, with all its decimals."""
        ...

    @property
    def worth_usd(self) -> Decimal | None:
        """What they were taken for, in whole cents; None where nobody knows what they were for."""
        ...

    @property
    def at(self) -> datetime:
        """When."""
        ...


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

    async def add_coins(self, tx: Tx, moved: CoinsMoved) -> Sequence[Event]:
        """Add coins received, or taken back; tells nothing, for the invoice does."""
        sign = -1 if moved.kind == "reversed" else 1
        _, digits, shift = moved.amount.as_tuple()
        if not isinstance(shift, int) or shift > 0 or moved.amount <= 0:
            raise BadAmount("coins are counted in units with all their decimals", reference=moved.reference)
        coins = Money(sign * int("".join(map(str, digits))), moved.asset, -shift)
        value = None
        if moved.worth_usd is not None:
            value = Money(sign * int(moved.worth_usd.scaleb(2)), "USD", 2)
        about = moved.reference if moved.invoice_id is None else f"crypto/{moved.invoice_id}"
        await self.add(tx, of_receipt(moved.reference, coins, value, at=moved.at, about=about, user_id=moved.user_id))
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
