"""What people do with the subscription they have: cancel, resume, change the plan.

What Stripe bills is changed at Stripe, and our state follows when the object has been fetched: `applied` is false until
then. What nobody bills by itself (crypto, manual) is changed here. There a new plan moves the end of what is paid by
the ratio of the prices: no money changes hands.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.payment.domain.plans import Plan, Plans
from services.payment.domain.proration import moved_end
from services.payment.domain.subscriptions import State
from services.payment.ports import Json, RawStripe
from services.payment.service.audit import Actor, Audit
from services.payment.service.calls import Call, Calls
from services.payment.service.catalogue import Catalogue
from services.payment.service.checkout import NotOffered
from services.payment.service.lookups import ask
from services.payment.service.subscriptions import Subscriptions
from services.payment.store.subscriptions import SubscriptionStore, state_of
from shared.clock import Clock
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.messaging.door import Done, Door

PREVIEW_HOLDS: Final = timedelta(hours=1)


class NothingToResume(Conflict):
    """Your subscription is neither paused nor about to end."""

    code = "NOTHING_TO_RESUME"


class SamePlan(Conflict):
    """You have this plan."""

    code = "SAME_PLAN"


class NotNow(Conflict):
    """Your subscription does not allow this as it is: it waits for a payment, or is paused or held back."""

    code = "NOT_NOW"


@dataclass(frozen=True, slots=True)
class Changed:
    """The subscription as we know it, and whether it shows the change already."""

    subscription: dict[str, Any]
    applied: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """What a change of plan would cost. Amounts are in minor units of the currency.

    `due_now_minor` is asked for at once, `proration_minor` with the next invoice (less than zero: credited). `at` is
    the moment that was reckoned with: a change that names it within the hour costs exactly this.
    """

    plan: str
    at: datetime
    currency: str
    due_now_minor: int
    proration_minor: int
    period_end: datetime | None


class Changes:
    """Changes subscriptions on their users' behalf."""

    def __init__(
        self,
        subscriptions: Subscriptions,
        store: SubscriptionStore,
        catalogue: Catalogue,
        *,
        door: Door,
        audit: Audit,
        clock: Clock,
        calls: Calls | None = None,
    ) -> None:
        self._subscriptions = subscriptions
        self._store = store
        self._catalogue = catalogue
        self._door = door
        self._audit = audit
        self._clock = clock
        self._calls = calls

    async def cancel(self, actor: Actor, *, now: bool) -> Changed:
        """End the subscription with its period, or at once: access ends then, and nothing is refunded."""
        row = await self._mine(actor.user_id)
        if row["provider"] != "stripe":
            return await self._here(actor, "cancel", lambda state: _ended(state, now=now))
        path = f"subscriptions/{row['provider_id']}"
        if now:
            call = Call("subscription.cancel", _lane(row), actor.user_id, path, {}, "delete")
        else:
            call = _update(row, actor, {"cancel_at_period_end": True})
        return await self._there(actor, "cancel", call)

    async def resume(self, actor: Actor) -> Changed:
        """Take back a cancellation before it has happened, or end a pause. Raises NothingToResume, NotNow."""
        row = await self._mine(actor.user_id)
        if row["provider"] != "stripe":
            return await self._here(actor, "resume", lambda state: _resumed(state, self._clock()))
        stripe, _ = self._offered()
        await self._refuse_held(row)
        current = await stripe.read(f"subscriptions/{row['provider_id']}")
        if current["status"] == "paused":
            path, params = f"subscriptions/{row['provider_id']}/resume", {"billing_cycle_anchor": "now"}
            call = Call("subscription.resume", _lane(row), actor.user_id, path, params)
        elif current.get("pause_collection"):
            call = _update(row, actor, {"pause_collection": ""})
        elif current.get("cancel_at_period_end"):
            call = _update(row, actor, {"cancel_at_period_end": False})
        elif current.get("cancel_at"):
            call = _update(row, actor, {"cancel_at": ""})
        else:
            raise NothingToResume
        return await self._there(actor, "resume", call)

    async def change_plan(self, actor: Actor, name: str, at: datetime | None) -> Changed:
        """Change the plan from `at` on, the moment of a preview, or from now. Raises as `preview` does."""
        plans, row = await self._plans(), await self._mine(actor.user_id)
        if row["provider"] != "stripe":
            ours = self._catalogue.settings.named(name)
            return await self._here(actor, "change-plan", lambda state: self._moved(state, ours))
        plan = plans.named(name)
        stripe, _ = self._offered()
        item, moment = await self._item(stripe, row, plan, plans), self._moment(at)
        change: dict[str, Any] = {
            "items": [{"id": item, "price": plan.stripe_price}],
            "proration_behavior": "create_prorations",
        }
        wish = {**change, "at": None if at is None else moment}
        call = _update(row, actor, {**change, "proration_date": moment}, wish=wish, plan=plan.name)
        return await self._there(actor, "change-plan", call, plan=plan.name)

    async def preview(self, actor: Actor, name: str, at: datetime | None) -> Preview:
        """Return what a change of plan would cost.

        Raises NotFound (no such plan, no subscription), SamePlan, NotOffered, NotNow, Invalid (a moment too long ago).
        """
        plans, row = await self._plans(), await self._mine(actor.user_id)
        if row["provider"] != "stripe":
            moved = self._moved(state_of(row), self._catalogue.settings.named(name))
            return Preview(moved.plan, self._clock(), "USD", 0, 0, moved.period_end)
        plan = plans.named(name)
        stripe, _ = self._offered()
        item, moment = await self._item(stripe, row, plan, plans), self._moment(at)
        details = {
            "items": [{"id": item, "price": plan.stripe_price}],
            "proration_behavior": "create_prorations",
            "proration_date": moment,
        }
        params = {"subscription": row["provider_id"], "subscription_details": details}
        key = f"openbell/preview/{row['provider_id']}/{plan.name}/{moment}"
        return _preview(plan, moment, await ask(stripe, "invoices/create_preview", params, key))

    # --- steps --------------------------------------------------------------------------------------

    def _offered(self) -> tuple[RawStripe, Calls]:
        if self._calls is None:
            raise NotOffered("payment by card is not offered here any more")
        return self._calls.stripe, self._calls

    async def _plans(self) -> Plans:
        async with self._door.read() as tx:
            return await self._catalogue.plans(tx)

    async def _mine(self, user_id: UUID) -> Row:
        async with self._door.read() as tx:
            row = await self._store.open(tx, user_id)
        if row is None:
            raise NotFound("you have no subscription")
        return row

    async def _here(self, actor: Actor, action: str, change: Callable[[State], State]) -> Changed:
        """Change a subscription that nobody else has."""

        async def use_case(tx: Tx) -> Done[Changed]:
            await self._store.lock_user(tx, actor.user_id)
            row = await self._store.open(tx, actor.user_id)
            if row is None:
                raise NotFound("you have no subscription")
            if row["provider"] == "stripe":
                raise NotNow("the subscription has just become another")
            state: State = change(state_of(row))
            events = await self._subscriptions.become(tx, actor.user_id, state, row["id"])
            told = self._audit.of(actor, f"{action}.subscription", str(actor.user_id), subscription=str(row["id"]))
            return Done(Changed(await self._subscriptions.shown(tx, actor.user_id), applied=True), [*events, told])

        return await self._door.run(use_case)

    async def _there(self, actor: Actor, action: str, call: Call, **details: str) -> Changed:
        """Change a subscription at Stripe."""
        _, calls = self._offered()

        async def order(tx: Tx) -> Done[Row]:
            placed = await calls.order(tx, call)
            subject, lane = str(actor.user_id), call.lane
            told = self._audit.of(actor, f"{action}.subscription", subject, subscription=lane, **details)
            return Done(placed, [told])

        await calls.result((await self._door.run(order))["id"])
        async with self._door.read() as tx:
            return Changed(await self._subscriptions.shown(tx, actor.user_id), applied=False)

    async def _item(self, stripe: RawStripe, row: Row, plan: Plan, plans: Plans) -> str:
        """Return the item of a subscription that the plan's price stands in."""
        if plan.stripe_price is None:
            raise NotOffered("this plan is not sold by card", plan=plan.name)
        await self._refuse_held(row)
        current = await stripe.read(f"subscriptions/{row['provider_id']}")
        if current["status"] not in {"trialing", "active"}:
            raise NotNow
        items: Sequence[Json] = current["items"]["data"]
        ours = [one for one in items if plans.of_price(one["price"]["id"]) is not None]
        item = (ours or items)[0]
        if item["price"]["id"] == plan.stripe_price:
            raise SamePlan
        return str(item["id"])

    async def _refuse_held(self, row: Row) -> None:
        """Raise NotNow where a refund or a dispute holds the subscription back: more of it would be billed in vain."""
        async with self._door.read() as tx:
            if await self._store.held(tx, row["user_id"], state_of(row)):
                raise NotNow("what paid for this subscription was given back, or is disputed")

    def _moment(self, at: datetime | None) -> int:
        now = self._clock()
        if at is not None and not now - PREVIEW_HOLDS <= at <= now:
            raise Invalid("`at` is not the moment of a preview within the last hour")
        return int((at or now).timestamp())

    def _moved(self, state: State, plan: Plan) -> State:
        """Return the state under another plan. Raises SamePlan, NotNow."""
        if state.plan == plan.name:
            raise SamePlan
        old = self._catalogue.settings.get(state.plan)
        if state.status == "trialing":
            return replace(state, plan=plan.name)  # nothing is paid yet
        if state.status != "active" or state.period_end is None or old is None:
            raise NotNow  # what was given for ever, or at a price that nobody knows any more, a person changes
        end = moved_end(self._clock(), state.period_end, old, plan)
        grace_until = None if state.grace_until is None else end + (state.grace_until - state.period_end)
        return replace(state, plan=plan.name, period_end=end, grace_until=grace_until, anchor_day=None)


def _lane(row: Row) -> str:
    return f"subscription/{row['provider_id']}"


def _update(row: Row, actor: Actor, params: Json, *, wish: Json | None = None, **metadata: str) -> Call:
    path = f"subscriptions/{row['provider_id']}"
    return Call(
        "subscription.update", _lane(row), actor.user_id, path, {**params, "metadata": metadata}, wish=wish or params
    )


def _ended(state: State, *, now: bool) -> State:
    """Return the state of a subscription that its user cancels; one without an end ends at once."""
    if now or state.period_end is None or state.status in {"past_due", "paused"}:
        return replace(state, status="canceled", cancel_at_period_end=False)
    return replace(state, cancel_at_period_end=True)


def _resumed(state: State, now: datetime) -> State:
    if state.status == "paused" and state.period_end is not None and state.period_end > now:
        return replace(state, status="active", cancel_at_period_end=False)
    if state.cancel_at_period_end and state.status in {"trialing", "active"}:
        return replace(state, cancel_at_period_end=False)
    raise NothingToResume


def _preview(plan: Plan, moment: int, invoice: Json) -> Preview:
    """Read Stripe's preview: an invoice that begins at once is due now, else the prorations come with the next one."""
    lines: Sequence[Json] = invoice["lines"]["data"]
    prorated = sum(int(line["amount"]) for line in lines if _is_proration(line))
    ends = [int(line["period"]["end"]) for line in lines if not _is_proration(line)]
    at_once = all(int(line["period"]["start"]) <= moment for line in lines if not _is_proration(line)) and bool(ends)
    return Preview(
        plan=plan.name,
        at=datetime.fromtimestamp(moment, UTC),
        currency=str(invoice["currency"]).upper(),
        due_now_minor=int(invoice["amount_due"]) if at_once else 0,
        proration_minor=prorated,
        period_end=datetime.fromtimestamp(min(ends), UTC) if ends else None,
    )


def _is_proration(line: Json) -> bool:
    parent = line.get("parent") or {}
    details = parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}
    return bool(details.get("proration"))
