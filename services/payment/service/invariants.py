"""What always has to hold, looked at by the clock: found broken, it is told in metrics and the log, and mended.

    the ledger adds up          to zero in each currency. The database refuses what does not; nothing can mend it
    the ledger is Stripe's      each balance transaction is one entry of the same amounts. What one that is missing came
                                from is asked for, which says whose it is; the next look adds what is missing still
    what is told is what holds  entitlements as told follow from the subscription's state. What does not is told again

What would surprise you: a balance transaction that is missing is no alarm until it is SETTLING old; a webhook may still
be on its way. Readiness does not follow these: a service that tells a wrong figure is better than none.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from services.payment.domain.ledger import FEES, Entry, of_balance_transaction
from services.payment.domain.stripe import reference
from services.payment.service.ledger import Ledger
from services.payment.service.subscriptions import Subscriptions
from services.payment.store.ledger import LedgerStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.messaging.door import Door

_log = logging.getLogger(__name__)

Movements = Callable[[datetime], AsyncIterator[Mapping[str, Any]]]
"""Yields Stripe's balance transactions made since then, in any order."""

Want = Callable[[Tx, Sequence[tuple[str, str]]], Awaitable[None]]
"""Asks for objects of Stripe's, each (kind, id), to be fetched and applied soon."""

UNBALANCED: Final = Gauge("openbell_payment_ledger_unbalanced", "Currencies in which the ledger is not zero")
DIFFERENT: Final = Gauge(
    "openbell_payment_ledger_stripe_differences", "Balance transactions on which ledger and Stripe differ", ["found"]
)  # found: missing (here), strange (not at Stripe), amounts
TOLD_WRONG: Final = Gauge(
    "openbell_payment_entitlements_told_wrong", "Subscriptions that allow another thing than told"
)
CHECKED: Final = Gauge(
    "openbell_payment_invariant_checked_timestamp_seconds",
    "When the invariant was last looked at, Unix time",
    ["invariant"],
)
MENDED: Final = Counter("openbell_payment_invariant_mended_total", "Things put right", ["invariant"])

SETTLING: Final = timedelta(minutes=15)
WINDOW: Final = timedelta(days=3)  # as long as Stripe repeats a webhook
LONG_WINDOW: Final = timedelta(days=35)
LONG_AT: Final = 3  # the hour, UTC, whose first run looks back LONG_WINDOW
AT_ONCE: Final = 500
_KINDS: Final = {
    "ch": "charge",
    "py": "charge",
    "re": "refund",
    "pyr": "refund",
    "dp": "dispute",
    "du": "dispute",
    "po": "payout",
}


class Invariants:
    """Looks, tells and mends. `movements` is None where nothing is sold by card."""

    def __init__(
        self,
        store: LedgerStore,
        subscription_store: SubscriptionStore,
        ledger: Ledger,
        subscriptions: Subscriptions,
        door: Door,
        *,
        movements: Movements | None,
        want: Want | None,
        clock: Clock,
    ) -> None:
        self._store = store
        self._subscription_store = subscription_store
        self._ledger = ledger
        self._subscriptions = subscriptions
        self._door = door
        self._movements = movements
        self._want = want
        self._clock = clock

    async def run(self, at: datetime) -> None:
        """Look at all three; what cannot be looked at does not keep the others from it."""
        long = at.hour == LONG_AT and at.minute < SETTLING.seconds // 60
        errors: list[Exception] = []
        for check in (self.adds_up, lambda: self.is_stripes(LONG_WINDOW if long else WINDOW), self.told_right):
            try:
                await check()
            except Exception as error:  # noqa: BLE001 - raised below, when the others had their turn
                errors.append(error)
        if errors:
            raise errors[0]

    async def adds_up(self) -> int:
        """Return in how many currencies the ledger is not zero."""
        async with self._door.read() as tx:
            rows = await self._store.unbalanced(tx)
        for row in rows:
            _broken("ledger_adds_up", currency=row["currency"], exponent=row["exponent"], amount=str(row["amount"]))
        UNBALANCED.set(len(rows))
        self._looked("ledger_adds_up")
        return len(rows)

    async def is_stripes(self, window: timedelta) -> Mapping[str, int]:
        """Return on how many balance transactions of the window ledger and Stripe differ; see to what is missing."""
        counts = {"missing": 0, "strange": 0, "amounts": 0}
        if self._movements is None:
            return counts
        now = self._clock()
        since = (now - window).replace(microsecond=0)
        async with self._door.read() as tx:  # first, so that what is booked meanwhile is not strange
            known = await self._store.of_stripe(tx, since, now)
        async for found in self._movements(since):
            entry = of_balance_transaction(found)
            row = known.pop(found["id"], None)
            if entry is None:
                continue
            if row is None:
                late = now - datetime.fromtimestamp(found["created"], UTC) > SETTLING
                if await self._add(entry, found, late=late) and late:
                    counts["missing"] += 1
                    _broken("ledger_is_stripes", found="missing", transaction=found["id"])
            elif not _same(row, entry):
                counts["amounts"] += 1
                _broken("ledger_is_stripes", found="amounts", transaction=found["id"])
        for transaction in known:
            counts["strange"] += 1
            _broken("ledger_is_stripes", found="strange", transaction=transaction)
        for name, count in counts.items():
            DIFFERENT.labels(name).set(count)
        self._looked("ledger_is_stripes")
        return counts

    async def told_right(self) -> int:
        """Return how many subscriptions allow another thing than was told; tell them again."""
        wrong, after = 0, UUID(int=0)
        while True:
            async with self._door.read() as tx:
                rows = await self._subscription_store.telling(tx, after, AT_ONCE)
                found = [row for row in rows if await self._subscriptions.told_wrong(tx, row)]
            if not rows:
                break
            after = rows[-1]["id"]
            for row in found:
                wrong += 1
                _broken("told_right", subscription=str(row["id"]), status=row["status"])
                await self._door.publish(self._tell_again(row["user_id"]))
                MENDED.labels("told_right").inc()
        TOLD_WRONG.set(wrong)
        self._looked("told_right")
        return wrong

    def _tell_again(self, user_id: UUID) -> Callable[[Tx], Awaitable[Sequence[Event]]]:
        async def tell(tx: Tx) -> Sequence[Event]:
            await self._subscription_store.lock_user(tx, user_id)
            return await self._subscriptions.review(tx, user_id)

        return tell

    async def _add(self, entry: Entry, found: Mapping[str, Any], *, late: bool) -> bool:
        """See to an entry that is missing; whether it is missing indeed.

        What it came from is asked for first: it brings the entry along, and knows the user. The bare entry is added
        when that has not helped until a later look, or where there is nothing to ask for.
        """
        source = reference(found.get("source")) or ""
        kind = _KINDS.get(source.partition("_")[0])
        async with self._door.transaction() as tx:
            if await self._store.has(tx, entry.key):
                return False
            if self._want is not None and kind is not None:
                asked = not await self._subscription_store.first_notice(tx, f"asked/{entry.key}", self._clock())
                if not (asked and late):
                    await self._want(tx, [(kind, source)])
                    return True
            if await self._ledger.add(tx, entry):
                tx.after_commit(MENDED.labels("ledger_is_stripes").inc)
        return True

    def _looked(self, invariant: str) -> None:
        CHECKED.labels(invariant).set(self._clock().timestamp())


def _same(row: Row, entry: Entry) -> bool:
    """Whether the ledger has the amounts that an entry of what Stripe says would have."""
    net = sum(one.money.minor for one in entry.postings if one.account == "assets:stripe")
    fees = sum(one.money.minor for one in entry.postings if one.account in FEES)
    return (row["currency"], row["net"], row["fees"]) == (entry.postings[0].money.currency, net, fees)


def _broken(invariant: str, **details: object) -> None:
    _log.error("payment_invariant_broken", extra={"invariant": invariant, **details})
