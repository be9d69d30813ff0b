"""Two subscriptions of one user that both run at Stripe, however they came to be: the later is ended and paid back.

A checkout closes the session before it, and refuses where a subscription is open; what still gets past that (a session
made in Stripe's dashboard, a crypto payment while a session is open) ends here. The first to be created stays. Each
later one is cancelled at once, the payments of its latest invoice are refunded, and both is audited. Where the user's
open subscription is not Stripe's, or another customer's there, none of this customer's stays; but a plan that was
granted for nothing gives way to one that the user pays for. A payment that was still on its way (a bank debit takes
days) is refunded when it arrives. What of this does not work is audited and counted, for a person has to do it.

What would surprise you: each subscription is suspected in a lane of its own. One that appears while another is looked
at would else join a look that does not see it. Looks that overlap end nothing twice.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from prometheus_client import Counter

from services.payment.domain.stripe import customer_of, moment, reference, subscription_of
from services.payment.ports import Json, NoSuchObject
from services.payment.service.audit import Audit
from services.payment.service.calls import PATIENT_LANES, Call, Calls
from services.payment.service.lookups import pages
from services.payment.service.refresh import Appliers
from services.payment.service.subscriptions import Subscriptions
from services.payment.store.mirror import MirrorStore
from services.payment.store.subscriptions import SubscriptionStore, state_of
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.messaging.door import Door

UNRESOLVED: Final = Counter(
    "openbell_payment_doubles_unresolved_total",
    "Steps of ending a doubled subscription that did not work: a person has to look",
    ["kind"],
)
RUNNING: Final = frozenset({"trialing", "active", "past_due", "paused"})


class Doubles:
    """Looks for doubled subscriptions and ends them."""

    def __init__(
        self,
        calls: Calls,
        mirror: MirrorStore,
        store: SubscriptionStore,
        subscriptions: Subscriptions,
        *,
        door: Door,
        audit: Audit,
    ) -> None:
        self._calls = calls
        self._mirror = mirror
        self._store = store
        self._subscriptions = subscriptions
        self._door = door
        self._audit = audit
        calls.before("doubles.check", self._check)
        calls.after("doubles.check", self._end)
        for kind in ("doubles.check", "subscription.cancel", "refund.create"):
            calls.failed(kind, self._unresolved)
            UNRESOLVED.labels(kind)  # from zero on, or the first one would be no increase

    def register(self, appliers: Appliers) -> None:
        """Hear of subscriptions and invoices; after what writes them down."""
        appliers.on("subscription", self.applied)
        appliers.on("invoice", self.arrived)

    async def applied(self, tx: Tx, told: Json | None, object_id: str) -> list[Event]:
        """Apply what Stripe says of a subscription: one that runs beside another open one is looked at."""
        if told is None or told["status"] not in RUNNING or (customer := customer_of(told)) is None:
            return []
        known = await self._mirror.get(tx, "subscription", object_id)  # whose it is has just been noted there
        if known is None or known["user_id"] is None:
            return []
        user_id: UUID = known["user_id"]
        ours = await self._store.open(tx, user_id)
        if ours is not None and ours["provider_id"] != object_id:
            await self.suspect(tx, user_id, customer, object_id)
        return []

    async def arrived(self, tx: Tx, told: Json | None, object_id: str) -> list[Event]:
        """Apply what Stripe says of an invoice: what was paid for a subscription after it was ended here goes back."""
        subscription = subscription_of(told) if told is not None and told["status"] == "paid" else None
        ended = await self._calls.last(tx, f"{PATIENT_LANES}{subscription}") if subscription is not None else None
        if told is None or subscription is None or ended is None:
            return []
        known = (await self._mirror.bodies(tx, "subscription", [subscription])).get(subscription) or {}
        paid_at = moment((told.get("status_transitions") or {}).get("paid_at"))
        if reference(known.get("latest_invoice")) != object_id and (paid_at is None or paid_at < ended["created_at"]):
            return []  # it was paid for a period that had been used before the subscription was doubled
        paid = _paid((told.get("payments") or {}).get("data") or ())
        back = await self._pay_back(tx, ended["user_id"], subscription, paid)
        if not back:
            return []
        about = {"subscription": subscription, "invoice": object_id, "refunded": back}
        return [self._audit.of(None, "refund.double_subscription", str(ended["user_id"]), **about)]

    async def suspect(self, tx: Tx, user_id: UUID, customer: str, subscription: str) -> None:
        """Have a customer's subscriptions looked at: this one was found beside another."""
        lane = f"doubles/{subscription}"
        await self._calls.order(tx, Call("doubles.check", lane, user_id, "", {"customer": customer}))

    async def _check(self, row: Row) -> Json:
        async with self._door.read() as tx:
            ours = await self._store.open(tx, row["user_id"])
            given = ours is not None and await self._given(tx, ours)
        listed = pages(self._calls.stripe, "subscriptions", {"customer": row["params"]["customer"], "status": "all"})
        running = sorted(
            [one async for one in listed if one["status"] in RUNNING], key=lambda one: (one["created"], one["id"])
        )
        known = {one["id"] for one in running}
        gives_way = ours["id"] if ours is not None and given and running else None
        keeps = 0 if ours is not None and not given and await self._runs_elsewhere(ours, known) else 1
        later: list[dict[str, Any]] = [
            {"id": one["id"], "payments": await self._payments(one), "invoice": reference(one.get("latest_invoice"))}
            for one in running[keeps:]
        ]
        ended = ours["provider_id"] if keeps and ours is not None and ours["provider_id"] not in known else None
        keep = [one["id"] for one in running[:keeps]]
        return {"kept": {"keep": keep, "later": later, "ended": ended, "given": gives_way and str(gives_way)}}

    async def _given(self, tx: Tx, ours: Row) -> bool:
        """Whether a plan was granted for nothing."""
        return ours["provider"] == "manual" and not await self._store.paid_by_hand(tx, ours)

    async def _runs_elsewhere(self, ours: Row, running: Collection[str]) -> bool:
        """Whether the user's open subscription is not this customer's: nobody at Stripe has it, or another customer.

        One that is over at Stripe by now, before we have heard of it, takes nothing away from the one after it.
        """
        if ours["provider"] != "stripe":
            return True
        if ours["provider_id"] in running:
            return False
        try:
            said = await self._calls.stripe.read(f"subscriptions/{ours['provider_id']}")
        except NoSuchObject:
            return False
        return said["status"] in RUNNING

    async def _payments(self, subscription: Json) -> list[dict[str, str]]:
        """Return what paid a subscription's latest invoice, as a refund names it."""
        invoice = reference(subscription.get("latest_invoice"))
        if invoice is None:
            return []
        listed = pages(self._calls.stripe, "invoice_payments", {"invoice": invoice, "status": "paid"})
        return _paid([one async for one in listed])

    async def _end(self, tx: Tx, row: Row, result: Json) -> Sequence[Event]:
        user_id: UUID = row["user_id"]
        events: list[Event] = []
        keep: Sequence[str] = result["kept"]["keep"]
        for later in result["kept"]["later"]:
            subscription: str = later["id"]
            path, lane = f"subscriptions/{subscription}", f"{PATIENT_LANES}{subscription}"
            if not await self._once(tx, Call("subscription.cancel", lane, user_id, path, {}, "delete")):
                continue
            await self._pay_back(tx, user_id, subscription, later["payments"])
            refunded = [next(iter(payment.values())) for payment in later["payments"]]
            if later.get("invoice") is not None:  # it may have been paid after the look, and applied before this
                await self._calls.mark(tx, "invoice", later["invoice"])
            about = {"subscription": subscription, "kept": list(keep), "refunded": refunded}
            events.append(self._audit.of(None, "cancel.double_subscription", str(user_id), **about))
        events += await self._give_way(tx, user_id, result["kept"].get("given"))
        for one in (*keep, *(later["id"] for later in result["kept"]["later"])):
            await self._calls.mark(tx, "subscription", one)
        if (ended := result["kept"].get("ended")) is not None:
            await self._calls.mark(tx, "subscription", ended)
        return events

    async def _pay_back(
        self, tx: Tx, user_id: UUID, subscription: str, payments: Sequence[Mapping[str, str]]
    ) -> list[str]:
        """Order a refund for each payment, once; return the ids of those that nobody had ordered yet."""
        ordered: list[str] = []
        for payment in payments:
            (paid,) = payment.values()
            about = {"reason": "duplicate", "metadata": {"user_id": str(user_id), "subscription": subscription}}
            call = Call("refund.create", f"refund/{paid}", user_id, "refunds", {**payment, **about})
            if await self._once(tx, call):
                ordered.append(paid)
        return ordered

    async def _once(self, tx: Tx, call: Call) -> bool:
        """Order what an overlapping look may have ordered already; whether it is new. What failed is tried again."""
        last = await self._calls.last(tx, call.lane)
        again = last if last is not None and last["status"] != "done" else None
        ordered = await self._calls.order_after(tx, call, again)
        return ordered is not None and ordered[1]

    async def _give_way(self, tx: Tx, user_id: UUID, granted: str | None) -> list[Event]:
        """End a plan that was granted for nothing: the user pays for one, which is applied when it is fetched again."""
        if granted is None:
            return []
        await self._store.lock_user(tx, user_id)
        ours = await self._store.open(tx, user_id)
        if ours is None or str(ours["id"]) != granted or not await self._given(tx, ours):
            return []
        over = replace(state_of(ours), status="canceled", grace_until=None)
        events = await self._subscriptions.become(tx, user_id, over, ours["id"])
        return [
            *events,
            self._audit.of(None, "end.manual_plan", str(user_id), plan=ours["plan"], reason="paid by card"),
        ]

    async def _unresolved(self, tx: Tx, row: Row, why: str) -> Sequence[Event]:
        """Tell of a step that did not work. A cancellation that the user asked for is told to the user alone."""
        if row["kind"] == "subscription.cancel" and not row["lane"].startswith(PATIENT_LANES):
            return ()
        tx.after_commit(UNRESOLVED.labels(row["kind"]).inc)
        about = {"kind": row["kind"], "call": row["key"], "why": why}
        return [self._audit.of(None, f"{row['kind'].partition('.')[0]}.failed", str(row["user_id"]), **about)]


def _paid(payments: Sequence[Json]) -> list[dict[str, str]]:
    """Return what paid an invoice, as a refund names it."""
    found: list[dict[str, str]] = []
    for one in payments:
        for kind in ("payment_intent", "charge"):
            if one["status"] == "paid" and (paid := reference(one["payment"].get(kind))) is not None:
                found.append({kind: paid})
                break
    return found
