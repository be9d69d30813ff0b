"""What Stripe's objects about money say, as it is told now: to the ledger, to users, and about access.

    invoice          paid: a receipt; open, and its payment waits for the customer: a notice
    charge           paid: into the ledger; failed: a notice; refunded in full: access to what it paid for ends
    refund           into the ledger; when it has succeeded, a notice. Its charge is asked for if we know it otherwise
    dispute          into the ledger; two notices; access is held back while it is open and after it was lost, unless
                     it is of a payment whose period was over when it was opened
    payment_method   its card is noted, for the notice before it ends
    payout           into the ledger

Each is a function (transaction, object, its id) -> events; the object is None where Stripe has none of that id. They
may run in any order and again: notices have names, entries have keys, and a receipt or a failure comes from objects
that stay. domain.stripe.KINDS says what an object brings with it, for Stripe names other objects by their ids alone.

A payment intent is left to its invoice, which brings it along.

What would surprise you: a failed payment is told from the failed charge, because an invoice forgets that an attempt
failed once a later one went well. That the customer has to do something is told only while it can still be done.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any, Final, Literal, cast
from uuid import NAMESPACE_URL, UUID, uuid5

from services.payment.domain.money import Money, fiat
from services.payment.domain.stripe import Object, moment, reference, subscription_of
from services.payment.service.catalogue import Catalogue
from services.payment.service.ledger import Ledger
from services.payment.service.refresh import Appliers
from services.payment.service.subscriptions import Subscriptions, once
from services.payment.store.mirror import MirrorStore
from services.payment.store.money import MoneyStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.payment import PaymentDisputed, PaymentFailed, PaymentReceived, PaymentRefunded
from shared.db import Tx
from shared.errors import NotYet

Want = Callable[[Tx, Sequence[tuple[str, str]]], Awaitable[None]]
"""Asks for objects of Stripe's, each (kind, id), to be fetched and applied soon."""

_INQUIRY: Final = "warning"  # a bank asks; nothing has moved, and nothing is held back


class Payments:
    """Applies what Stripe says about money; what each applier does stands at the top."""

    def __init__(
        self,
        store: MoneyStore,
        subscription_store: SubscriptionStore,
        ledger: Ledger,
        subscriptions: Subscriptions,
        *,
        mirror: MirrorStore,
        want: Want,
        catalogue: Catalogue,
        clock: Clock,
    ) -> None:
        self._store = store
        self._mirror = mirror
        self._want = want
        self._notices = subscription_store
        self._ledger = ledger
        self._subscriptions = subscriptions
        self._catalogue = catalogue
        self._clock = clock

    def register(self, appliers: Appliers) -> None:
        """Name them in the table."""
        appliers.on("invoice", self.invoice)
        appliers.on("charge", self.charge)
        appliers.on("refund", self.refund)
        appliers.on("dispute", self.dispute)
        appliers.on("payment_method", self.payment_method)
        appliers.on("payout", self.payout)
        appliers.on("balance_transaction", self.balance_transaction)

    async def invoice(self, tx: Tx, obj: Object | None, object_id: str) -> list[Event]:
        """Note which payments an invoice has, and tell what became of it."""
        user_id = await self._user(tx, obj)
        if obj is None or user_id is None:
            return []
        plan = await self._plan_of(tx, obj)
        events: list[Event] = []
        for intent in _intents(obj):
            link = {"invoice": object_id, "user_id": user_id, **_link(obj)}
            if await self._store.link(tx, cast("str", reference(intent)), link):
                events += await self._review(tx, user_id)
            if obj.get("status") == "open" and isinstance(intent, Mapping):
                events += await self._not_paid(tx, user_id, cast("Object", intent), obj, plan)
        if obj.get("status") == "paid" and obj.get("amount_paid", 0) > 0:
            name = f"received/stripe/{object_id}"
            receipt = PaymentReceived(
                **self._fact(name, user_id, object_id, fiat(obj["amount_paid"], obj["currency"])),
                plan=plan,
                renewal=obj.get("billing_reason") == "subscription_cycle",
                receipt_url=obj.get("hosted_invoice_url"),
            )
            events += await self._once(tx, name, receipt)
        return events

    async def charge(self, tx: Tx, obj: Object | None, object_id: str) -> list[Event]:
        """Book a charge; tell one that failed; end access to what one paid for that was refunded in full."""
        if obj is None:
            return []
        user_id = await self._user(tx, obj)
        moved = (obj.get("balance_transaction"), obj.get("failure_balance_transaction"))
        await self._ledger.add_transactions(tx, moved, user_id)
        if user_id is None:
            return []
        if obj.get("status") == "failed":
            return await self._failed(tx, user_id, object_id, obj)
        if obj.get("status") == "succeeded":
            await self._note_card(tx, user_id, reference(obj.get("payment_method")), _card_of(obj), obj["created"])
        refunded = obj.get("refunded") is True
        return await self._hold(tx, user_id, f"stripe/{object_id}", obj, "refunded", lifted=not refunded)

    async def refund(self, tx: Tx, obj: Object | None, object_id: str) -> list[Event]:
        """Book a refund; tell it when the money is on its way."""
        if obj is None:
            return []
        await self._ask_for_charge(tx, obj.get("charge"))
        user_id = await self._whose(tx, obj)
        moved = (obj.get("balance_transaction"), obj.get("failure_balance_transaction"))
        await self._ledger.add_transactions(tx, moved, user_id)
        if user_id is None or obj.get("status") != "succeeded":
            return []
        name = f"refunded/stripe/{object_id}"
        fact = self._fact(name, user_id, object_id, fiat(obj["amount"], obj["currency"]))
        return await self._once(tx, name, PaymentRefunded(**fact))

    async def dispute(self, tx: Tx, obj: Object | None, object_id: str) -> list[Event]:
        """Book what a dispute moved; hold back access unless it was won; tell how it began and how it ended.

        A bank's inquiry and a dispute that was prevented are no disputes.
        """
        if obj is None:
            return []
        user_id = await self._whose(tx, obj)
        await self._ledger.add_transactions(tx, obj.get("balance_transactions") or (), user_id)
        status: str = obj["status"]
        if user_id is None or status.startswith(_INQUIRY) or status == "prevented":
            return []
        events: list[Event] = []
        steps: list[Literal["opened", "won", "lost"]] = ["opened"]
        if status in {"won", "lost"}:
            steps.append("won" if status == "won" else "lost")
        for step in steps:
            name = f"disputed/stripe/{object_id}/{step}"
            fact = self._fact(name, user_id, object_id, fiat(obj["amount"], obj["currency"]))
            events += await self._once(tx, name, PaymentDisputed(**fact, status=step))
        about = f"stripe/{object_id}"
        return [*events, *await self._hold(tx, user_id, about, obj, "disputed", lifted=status == "won")]

    async def payment_method(self, tx: Tx, obj: Object | None, object_id: str) -> list[Event]:
        """Note a customer's card, or forget it."""
        user_id = await self._user(tx, obj)
        if obj is None or user_id is None:
            await self._store.forget_card(tx, object_id)
        else:
            await self._note_card(tx, user_id, object_id, obj.get("card"), obj["created"])
        return []

    async def payout(self, tx: Tx, obj: Object | None, object_id: str) -> list[Event]:
        """Book a payout."""
        del object_id
        if obj is not None:
            moved = (obj.get("balance_transaction"), obj.get("failure_balance_transaction"))
            await self._ledger.add_transactions(tx, moved)
        return []

    async def balance_transaction(self, tx: Tx, obj: Object | None, object_id: str) -> list[Event]:
        """Book a balance transaction that nothing else brought."""
        del object_id
        source = obj.get("source") if obj is not None else None
        user_id = await self._user(tx, cast("Object", source)) if isinstance(source, Mapping) else None
        await self._ledger.add_transactions(tx, [obj], user_id)
        return []

    async def _not_paid(self, tx: Tx, user_id: UUID, intent: Object, invoice: Object, plan: str | None) -> list[Event]:
        """Tell what an open invoice waits for: the customer, or another attempt."""
        owed = fiat(invoice["amount_remaining"], invoice["currency"])
        more: dict[str, Any] = {"plan": plan, "pay_url": invoice.get("hosted_invoice_url")}
        if intent.get("status") == "requires_action" and invoice.get("billing_reason") == "subscription_cycle":
            name = f"action/stripe/{intent['id']}"
            more |= {"reason": "your bank wants you to confirm the payment", "action_required": True}
            return await self._once(tx, name, PaymentFailed(**self._fact(name, user_id, invoice["id"], owed), **more))
        error: Object = intent.get("last_payment_error") or {}
        charge = reference(error.get("charge"))
        if charge is None:
            return []
        name = f"failed/stripe/{charge}"
        more |= {"reason": _reason(error), "next_attempt_at": moment(invoice.get("next_payment_attempt"))}
        return await self._once(tx, name, PaymentFailed(**self._fact(name, user_id, charge, owed), **more))

    async def _failed(self, tx: Tx, user_id: UUID, object_id: str, charge: Object) -> list[Event]:
        name = f"failed/stripe/{object_id}"
        fact = self._fact(name, user_id, object_id, fiat(charge["amount"], charge["currency"]))
        said = {"message": charge.get("failure_message"), "code": charge.get("failure_code")}
        return await self._once(tx, name, PaymentFailed(**fact, reason=_reason(said)))

    async def _hold(
        self,
        tx: Tx,
        user_id: UUID,
        about: str,
        obj: Object,
        reason: Literal["refunded", "disputed"],
        *,
        lifted: bool,
    ) -> list[Event]:
        intent = reference(obj.get("payment_intent"))
        hold = {"user_id": user_id, "reason": reason, "payment_intent": intent}
        if not await self._store.hold(tx, about, hold, lifted=lifted, at=self._clock()):
            return []
        return await self._review(tx, user_id)

    async def _review(self, tx: Tx, user_id: UUID) -> list[Event]:
        await self._notices.lock_user(tx, user_id)
        return await self._subscriptions.review(tx, user_id)

    async def _user(self, tx: Tx, obj: Object | None) -> UUID | None:
        """Return whose an object is; None for nobody's. Raises NotYet before its customer has been heard of."""
        customer = reference(obj.get("customer")) if obj is not None else None
        if customer is None:
            return None
        user_id = await self._store.user_of(tx, customer)
        if user_id is None and not await self._store.heard_of(tx, customer):
            raise NotYet("its customer has not been heard of yet", customer=customer)
        return user_id

    async def _whose(self, tx: Tx, obj: Object) -> UUID | None:
        """Return whose charge a refund or a dispute is about; None for one of nobody we know. Raises NotYet."""
        charge = obj.get("charge")
        if isinstance(charge, Mapping):
            return await self._user(tx, cast("Object", charge))
        if (user_id := await self._user(tx, obj)) is not None:
            return user_id
        if charge is None:  # paid by a balance or a transfer: nothing that could be heard of later
            return None
        known, user_id = await self._ledger.user_of(tx, f"stripe/{charge}")
        if not known:
            raise NotYet("its charge has not been heard of yet", charge=charge)
        return user_id

    async def _ask_for_charge(self, tx: Tx, charge: object) -> None:
        """Have a refund's charge fetched where we do not know it as it is now: it says whether access ends.

        What has been fetched agrees with what a refund brings, so nothing is asked for twice.
        """
        if not isinstance(charge, Mapping):
            return
        now = cast("Object", charge)
        known = (await self._mirror.bodies(tx, "charge", [now["id"]])).get(now["id"]) or {}
        if known.get("amount_refunded") != now.get("amount_refunded"):
            await self._want(tx, [("charge", now["id"])])

    async def _note_card(self, tx: Tx, user_id: UUID, provider_id: str | None, card: object, seen: int) -> None:
        if provider_id is None or not isinstance(card, Mapping):
            return
        found = cast("Object", card)
        year, month = found.get("exp_year"), found.get("exp_month")
        if not isinstance(year, int) or not isinstance(month, int):
            return
        expires = date(year + month // 12, month % 12 + 1, 1)
        noted = {"provider_id": provider_id, "brand": found.get("brand") or "card", "last4": found.get("last4") or "?"}
        await self._store.note_card(tx, user_id, noted, expires, datetime.fromtimestamp(seen, UTC))

    def _fact(self, name: str, user_id: UUID, object_id: str, money: Money) -> dict[str, Any]:
        return {
            "id": uuid5(NAMESPACE_URL, f"openbell/payment/{name}"),
            "time": self._clock(),
            "user_id": user_id,
            "provider": "stripe",
            "reference": f"stripe/{object_id}",
            "amount": money.units,
            "currency": money.currency,
        }

    async def _once(self, tx: Tx, name: str, event: Event) -> list[Event]:
        return [*await once(self._notices, tx, name, event.time, event)]

    async def _plan_of(self, tx: Tx, invoice: Object) -> str | None:
        plans = await self._catalogue.plans(tx)
        for line in _lines(invoice):
            pricing: Any = line.get("pricing") or {}
            price = reference((pricing.get("price_details") or {}).get("price"))
            plan = plans.of_price(price) if price is not None else None
            if plan is not None:
                return plan.name
        return None


def _lines(invoice: Object) -> Sequence[Object]:
    return (invoice.get("lines") or {}).get("data") or ()


def _intents(invoice: Object) -> list[object]:
    """Return the payment intents of an invoice: objects, or ids where nobody asked for more."""
    payments: Sequence[Object] = (invoice.get("payments") or {}).get("data") or ()
    intents = [(payment.get("payment") or {}).get("payment_intent") for payment in payments]
    return [intent for intent in intents if reference(intent) is not None]


def _link(invoice: Object) -> dict[str, Any]:
    start, end = _period(invoice)
    return {
        "subscription": subscription_of(invoice),
        "reason": invoice.get("billing_reason"),
        "period_start": start,
        "period_end": end,
    }


def _period(invoice: Object) -> tuple[datetime | None, datetime | None]:
    """Return the period that an invoice pays for: of its lines' the one that ends last, and of those the longest.

    Lines of a change of plan begin and end with the old period, or begin in the middle of one that goes on.
    """
    found: list[Object] = [line.get("period") or {} for line in _lines(invoice)]
    periods: list[tuple[int, int]] = [(one["end"], -one["start"]) for one in found if {"start", "end"} <= one.keys()]
    if not periods:
        return None, None
    end, start = max(periods)
    return moment(-start), moment(end)


def _card_of(charge: Object) -> object:
    return (charge.get("payment_method_details") or {}).get("card")


def _reason(error: Object) -> str:
    return error.get("message") or error.get("code") or "the payment did not work"
