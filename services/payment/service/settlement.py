"""What an invoice's receipts mean for the ledger, for the customer and for the subscription.

Each receipt is booked once when it is deep enough, and booked back when the chain takes it away. An invoice that is
whole grants one period, once. While a granted invoice is in doubt (its transaction dropped out of the chain and may
come back) the grant stays; it is taken back when the doubt ends badly.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid5

from prometheus_client import Counter

from services.payment.domain.crypto import IN_DOUBT, LATE_WORTH, WHOLE, Receipt, Verdict, in_units, judge, usd_worth
from services.payment.domain.money import MOST
from services.payment.domain.periods import anchor_of, period_after
from services.payment.domain.plans import Plans
from services.payment.domain.proration import moved_end
from services.payment.domain.subscriptions import State
from services.payment.service.subscriptions import AlreadySubscribed, Subscriptions, once
from services.payment.store.crypto import CryptoStore
from services.payment.store.receipts import ReceiptStore
from services.payment.store.subscriptions import SubscriptionStore, state_of
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.payment import PaymentReceived
from shared.db import Row, Tx

STATES: Final = Counter("openbell_payment_crypto_invoices_total", "Invoices that came into a state", ["chain", "state"])
UNMATCHED: Final = Counter("openbell_payment_crypto_unmatched_total", "Final receipts that pay no invoice", ["chain"])
UNBOOKABLE: Final = Counter(
    "openbell_payment_crypto_unbookable_total", "Of those, receipts larger than an amount of the ledger", ["chain"]
)


@dataclass(frozen=True, slots=True)
class CryptoMovement:
    """Coins that came to stay, or that the chain has taken back. `reference` names each once."""

    reference: str  # crypto/<chain>/<transaction>/<log or output>#<how many times it was booked>, /reversed
    kind: str  # "received" or "reversed"
    user_id: UUID | None  # None: it matches no invoice
    invoice_id: UUID | None
    asset: str
    amount: Decimal  # units of the asset, with all its decimals
    decimals: int
    worth_usd: Decimal | None  # at the invoice's rate; None without an invoice
    at: datetime


CryptoReceipt = Callable[[Tx, CryptoMovement], Awaitable[Sequence[Event]]]
"""Books a movement in the ledger, in the transaction that found it; returns what it has to tell."""


class Settlement:
    """Takes a transaction, returns what happened."""

    def __init__(
        self,
        store: CryptoStore,
        receipts: ReceiptStore,
        subscription_store: SubscriptionStore,
        *,
        subscriptions: Subscriptions,
        plans: Plans,
        clock: Clock,
        receipt: CryptoReceipt,
    ) -> None:
        self._store = store
        self._receipts = receipts
        self._subscription_store = subscription_store
        self._subscriptions = subscriptions
        self._plans = plans
        self._clock = clock
        self._receipt = receipt

    async def settle(self, tx: Tx, invoice_id: UUID, head: int, worth: Mapping[str, Decimal]) -> list[Event]:
        """Judge an invoice at a height of its chain; `worth` is USD for one unit of assets that came late."""
        known = await self._store.get(tx, invoice_id)
        if known is None:
            return []
        await self._subscription_store.lock_user(tx, known["user_id"])
        row = await self._store.lock(tx, invoice_id)
        assert row is not None  # noqa: S101 - invoices are never deleted
        now = self._clock()
        found = await self._receipts.of(tx, invoice_id)
        receipts = [_receipt(one, head) for one in found]
        verdict = judge(
            amount=int(row["amount"]),
            expires_at=row["expires_at"],
            needed=row["confirmations"],
            receipts=receipts,
            now=now,
        )
        events = await self._book(tx, row, list(zip(found, receipts, strict=True)), now)
        grant: dict[str, Any] = {name: row[name] for name in ("worth_usd", *_GRANT)}
        if row["granted_until"] is None and verdict.confirmed != row["confirmed"]:
            grant["worth_usd"] = None  # it was of another sum
        if verdict.state == "paid_late" and grant["worth_usd"] is None and row["asset"] in worth:
            units = in_units(verdict.confirmed, row["decimals"])
            grant["worth_usd"] = usd_worth(units, worth[row["asset"]])
        if _is_paid(verdict, row, grant["worth_usd"]):
            if row["granted_until"] is None:
                events += await self._grant(tx, row, grant, now)
                events += await self._tell_received(tx, row, verdict, now)
        elif row["granted_until"] is not None and verdict.state not in IN_DOUBT:
            events += await self._take_back(tx, row, grant, now)
        unfinished = any(one["status"] != "dropped" and not one["final"] for one in found)
        held = row["held"] and (now < row["held_until"] or unfinished)
        await self._store.judged(tx, row, verdict, grant, held=held, now=now)
        await self._receipts.settled(tx, invoice_id)
        if verdict.state != row["state"]:
            tx.after_commit(STATES.labels(row["chain"], verdict.state).inc)
        return events

    async def book_strays(self, tx: Tx, chain: str, decimals: Mapping[str, int]) -> list[Event]:
        """Book receipts that match no invoice, once they are final, or back when they are gone.

        One that is too large for the ledger (a token may write any amount) is counted, and left out of it for good.
        """
        events: list[Event] = []
        for row in await self._receipts.stray(tx, chain):
            booked = row["amount"] if row["status"] == "mined" else None
            if booked is not None and row["booked"] is None:
                tx.after_commit(UNMATCHED.labels(chain).inc)
            if booked is not None and booked > MOST:
                tx.after_commit(UNBOOKABLE.labels(chain).inc)
                await self._receipts.booked(tx, row, None, row["bookings"])
                continue
            nobody = _Books(None, None, decimals.get(row["asset"], 0), None)
            events += await self._move(tx, row, booked, nobody, self._clock())
        return events

    async def unbook(self, tx: Tx, row: Row, decimals: int) -> list[Event]:
        """Book a receipt back that matched no invoice, because somebody says whose it is."""
        return await self._move(tx, row, None, _Books(None, None, decimals, None), self._clock())

    async def _book(self, tx: Tx, row: Row, found: Sequence[tuple[Row, Receipt]], now: datetime) -> list[Event]:
        events: list[Event] = []
        books = _Books(row["user_id"], row["id"], row["decimals"], row["rate_usd"])
        for one, receipt in found:
            if receipt.status == "dropped":
                events += await self._move(tx, one, None, books, now)
            elif receipt.status == "mined" and receipt.confirmations >= row["confirmations"]:
                events += await self._move(tx, one, one["amount"], books, now)
        return events

    async def _move(self, tx: Tx, one: Row, booked: Decimal | None, books: "_Books", now: datetime) -> list[Event]:
        """Make the ledger say `booked` base units of a receipt; None: nothing."""
        if one["booked"] == booked:
            return []
        events: list[Event] = []
        bookings: int = one["bookings"]
        name = f"crypto/{one['chain']}/{one['tx']}/{one['idx']}"
        if one["booked"] is not None:
            taken_back = books.movement(f"{name}#{bookings}/reversed", "reversed", one, one["booked"], now)
            events += await self._receipt(tx, taken_back)
        if booked is not None:
            bookings += 1
            events += await self._receipt(tx, books.movement(f"{name}#{bookings}", "received", one, booked, now))
        await self._receipts.booked(tx, one, booked, bookings)
        return events

    async def _grant(self, tx: Tx, row: Row, grant: dict[str, Any], now: datetime) -> list[Event]:
        """Give one period: the first of a subscription, or one more of the same. Writes into `grant` what was given."""
        plan = self._plans.get(row["plan"])
        open_row = await self._subscription_store.open(tx, row["user_id"])
        if plan is None:
            grant["problem"] = "PLAN_GONE"
            return []
        if open_row is not None and (open_row["provider"], open_row["plan"]) != ("crypto", plan.name):
            grant["problem"] = AlreadySubscribed.code
            return []
        began, start, anchor, subscription_id = now, now, None, uuid5(row["id"], f"subscription/{row['grants']}")
        if open_row is not None:
            subscription_id, end = open_row["id"], open_row["current_period_end"] or now
            start = end if now < (open_row["grace_until"] or end) else now  # days without access are not sold
            began = open_row["current_period_start"] if start > now else start
            anchor = open_row["anchor_day"] if start == end else None
        until, anchor = period_after(start, plan.period, anchor), anchor_of(start, anchor)
        state = State("crypto", None, plan.name, "active", period_start=began, period_end=until, anchor_day=anchor)
        grant |= {
            "subscription_id": subscription_id,
            "granted_from": start,
            "granted_until": until,
            "grants": row["grants"] + 1,
            "problem": None,
        }
        return await self._subscriptions.become(tx, row["user_id"], state, subscription_id)

    async def _take_back(self, tx: Tx, row: Row, grant: dict[str, Any], now: datetime) -> list[Event]:
        """Take the granted period back: what was given later moves forward by as much."""
        subscription_id = row["subscription_id"]
        grant |= {"subscription_id": None, "granted_from": None, "granted_until": None, "worth_usd": None}
        open_row = await self._subscription_store.open(tx, row["user_id"])
        if open_row is None or open_row["id"] != subscription_id or open_row["current_period_end"] is None:
            return []
        state, given = state_of(open_row), self._given(row, open_row["plan"])
        end = open_row["current_period_end"] - given
        grace = None if state.grace_until is None else state.grace_until - given
        status = state.status if end > now else "expired"
        state = replace(state, period_end=end, grace_until=grace, status=status)
        return await self._subscriptions.become(tx, row["user_id"], state, subscription_id)

    def _given(self, row: Row, plan: str) -> timedelta:
        """Return how long an invoice's period is at the price of the plan that the subscription has by now."""
        old, new = self._plans.get(row["plan"]), self._plans.get(plan)
        until = row["granted_until"]
        if old is not None and new is not None:
            until = moved_end(row["granted_from"], until, old, new)
        return until - row["granted_from"]

    async def _tell_received(self, tx: Tx, row: Row, verdict: Verdict, now: datetime) -> Sequence[Event]:
        received = PaymentReceived(
            id=uuid5(row["id"], "received"),
            time=now,
            user_id=row["user_id"],
            provider="crypto",
            reference=f"crypto/{row['id']}",
            plan=row["plan"],
            amount=in_units(verdict.confirmed, row["decimals"]),
            currency=row["asset"],
            renewal=row["renews"] is not None,
        )
        return await once(self._subscription_store, tx, f"receipt/crypto/{row['id']}", now, received)


_GRANT: Final = ("subscription_id", "granted_from", "granted_until", "grants", "problem")


@dataclass(frozen=True, slots=True)
class _Books:
    """Whose receipts are booked."""

    user_id: UUID | None
    invoice_id: UUID | None
    decimals: int
    rate_usd: Decimal | None

    def movement(self, reference: str, kind: str, one: Row, amount: Decimal, now: datetime) -> CryptoMovement:
        units = in_units(int(amount), self.decimals)
        worth = None if self.rate_usd is None else usd_worth(units, self.rate_usd)
        return CryptoMovement(
            reference, kind, self.user_id, self.invoice_id, one["asset"], units, self.decimals, worth, now
        )


def _is_paid(verdict: Verdict, row: Row, worth_usd: Decimal | None) -> bool:
    if verdict.state == "paid_late":
        return row["granted_until"] is not None or (worth_usd or 0) >= row["price_usd"] * LATE_WORTH
    return verdict.state in WHOLE


def _receipt(row: Row, head: int) -> Receipt:
    confirmations = max(head - row["block_number"] + 1, 0) if row["status"] == "mined" else 0
    return Receipt(int(row["amount"]), row["status"], row["at"], confirmations, row["mined_at"])
