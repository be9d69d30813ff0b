"""The ledger's rows. They are only added: triggers refuse everything else, and an entry that does not add up."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import text

from services.payment.domain.ledger import FEES, Entry
from shared.db import Row, Tx

_ENTRY: Final = text("""
    insert into ledger_entries (key, kind, at, about, user_id, lines, recorded_at)
    values (:key, :kind, :at, :about, cast(:user_id as uuid), :lines, :now)
    on conflict (key) do nothing returning key""")
_POSTING: Final = text("""
    insert into ledger_postings (entry, line, account, currency, exponent, amount)
    values (:entry, :line, :account, :currency, :exponent, :amount)""")
_ABOUT: Final = text("select * from ledger_entries where about = :about order by at, key limit 1")
_HAS: Final = text("select true from ledger_entries where key = :key")
_BALANCES: Final = text("""
    select account, currency, exponent, sum(amount) as amount from ledger_postings
    group by account, currency, exponent order by currency, exponent, account""")
_UNBALANCED: Final = text("""
    select currency, exponent, sum(amount) as amount from ledger_postings
    group by currency, exponent having sum(amount) <> 0 order by currency, exponent""")
_PAGE: Final = text("""
    select e.key, e.kind, e.at, e.about, e.user_id, p.line, p.account, p.currency, p.exponent, p.amount
    from (
        select * from ledger_entries
        where at >= :since and at < :until and (at, key) > (cast(:after_at as timestamptz), cast(:after_key as text))
        order by at, key limit :most
    ) e join ledger_postings p on p.entry = e.key
    order by e.at, e.key, p.line""")
_STRIPES: Final = text("""
    select e.key, e.at, p.currency, p.exponent, coalesce(sum(p.amount) filter (where p.account = 'assets:stripe'), 0)
        as net, coalesce(sum(p.amount) filter (where p.account = any(cast(:fees as text[]))), 0) as fees
    from ledger_entries e join ledger_postings p on p.entry = e.key
    where e.key like 'stripe/txn%' and e.at >= :since and e.at < :until
    group by e.key, e.at, p.currency, p.exponent""")


class LedgerStore:
    """Adds entries and reads them."""

    async def add(self, tx: Tx, entry: Entry, now: datetime) -> bool:
        """Add an entry; whether it is new. One of the same key stays as it is."""
        added = await tx.fetchrow(
            _ENTRY,
            key=entry.key,
            kind=entry.kind,
            at=entry.at,
            about=entry.about,
            user_id=entry.user_id,
            lines=len(entry.postings),
            now=now,
        )
        if added is None:
            return False
        await tx.execute_many(
            _POSTING,
            [
                {
                    "entry": entry.key,
                    "line": line,
                    "account": posting.account,
                    "currency": posting.money.currency,
                    "exponent": posting.money.exponent,
                    "amount": Decimal(posting.money.minor),
                }
                for line, posting in enumerate(entry.postings)
            ],
        )
        return True

    async def has(self, tx: Tx, key: str) -> bool:
        """Whether there is an entry of that key."""
        return bool(await tx.fetchval(_HAS, key=key))

    async def about(self, tx: Tx, about: str) -> Row | None:
        """Return the first entry that was for an object of a provider."""
        return await tx.fetchrow(_ABOUT, about=about)

    async def balances(self, tx: Tx) -> list[Row]:
        """Return what each account holds, in minor units."""
        return await tx.fetch(_BALANCES)

    async def unbalanced(self, tx: Tx) -> list[Row]:
        """Return the currencies that do not add up to zero over all entries."""
        return await tx.fetch(_UNBALANCED)

    async def page(
        self, tx: Tx, since: datetime, until: datetime, after: tuple[datetime, str], most: int
    ) -> Sequence[Row]:
        """Return the postings of the next `most` entries of [since, until), after the entry of that time and key."""
        return await tx.fetch(_PAGE, since=since, until=until, after_at=after[0], after_key=after[1], most=most)

    async def of_stripe(self, tx: Tx, since: datetime, until: datetime) -> dict[str, Row]:
        """Return what the ledger says of Stripe's balance transactions in [since, until), by their ids."""
        rows = await tx.fetch(_STRIPES, since=since, until=until, fees=list(FEES))
        return {row["key"].removeprefix("stripe/"): row for row in rows}
