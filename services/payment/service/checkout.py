"""Buying by card: a checkout session at Stripe, the portal, the invoices.

A user has one session at a time. While it is open, the same wish gets the same session; another wish (plan, coupon,
addresses) closes it first, so that two cannot both be paid. What the user has already is asked of Stripe and not of our
tables, which follow a moment later.

What would surprise you: a trial is for people who never had a subscription.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.payment.domain.plans import Plan
from services.payment.domain.returns import Returns
from services.payment.ports import Json, NoSuchObject, RawStripe, StripeRefused
from services.payment.service.audit import Actor, Audit
from services.payment.service.calls import Call, Calls, ChangePending
from services.payment.service.catalogue import Catalogue
from services.payment.service.customers import Customers
from services.payment.service.lookups import ask, pages
from services.payment.service.subscriptions import AlreadySubscribed
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import Clock, NewId
from shared.db import Row, Tx
from shared.errors import Conflict, Forbidden, Invalid, NotFound
from shared.messaging.door import Done, Door

OPEN_FOR: Final = timedelta(hours=1)
"""How long a session can be paid; Stripe allows half an hour to a day."""

BLOCKING: Final = frozenset({"trialing", "active", "past_due", "paused", "incomplete"})
"""A subscription in such a state is there already: a second one would be a double. `incomplete`: its first payment is
under way, for a day at most."""

_TURNS: Final = 5


class NotOffered(Conflict):
    """This is not offered here."""

    code = "NOT_OFFERED"


class CouponInvalid(Invalid):
    """This coupon does not exist, or is not for you or this plan."""

    code = "COUPON_INVALID"


class NoCustomer(Conflict):
    """You have not paid by card yet."""

    code = "NO_CUSTOMER"


@dataclass(frozen=True, slots=True)
class Wish:
    """What somebody wants to buy; the addresses are where Stripe sends them back to."""

    plan: str
    coupon: str | None = None
    success_url: str | None = None
    cancel_url: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """A checkout session: `url` is where the user pays."""

    id: str
    url: str
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a user's invoices, newest first, as Stripe shows them. `next` is the `before` of the next page."""

    invoices: Sequence[Json]
    next: str | None


class Checkouts:
    """Sells by card. Without Stripe nothing is offered."""

    def __init__(
        self,
        catalogue: Catalogue,
        returns: Returns,
        subscriptions: SubscriptionStore,
        customers: Customers,
        *,
        door: Door,
        audit: Audit,
        clock: Clock,
        new_id: NewId,
        calls: Calls | None = None,
    ) -> None:
        self._new_id = new_id
        self._catalogue = catalogue
        self._returns = returns
        self._subscriptions = subscriptions
        self._door = door
        self._audit = audit
        self._clock = clock
        self._customers = customers
        self._calls = calls

    async def begin(self, actor: Actor, wish: Wish) -> Session:
        """Return the session where the user pays for a plan.

        Raises NotFound (plan), NotOffered, ReturnNotAllowed, CouponInvalid, AlreadySubscribed, StripeRefused, and
        Pending or GivenUp while Stripe is away.
        """
        async with self._door.read() as tx:
            plan = await self._catalogue.named(tx, wish.plan)
        stripe, calls = self._offered(plan)
        back = self._returns.to(wish.success_url), self._returns.to(wish.cancel_url)
        trial_days = await self._trial_days(actor.user_id, plan)
        for _ in range(_TURNS):
            customer = await self._customers.id_of(actor.user_id)
            try:
                call = _session(
                    actor.user_id,
                    customer,
                    plan,
                    trial_days=trial_days,
                    promotion=await _promotion(stripe, wish.coupon, customer),
                    back=back,
                    now=self._clock(),
                )
                session = await self._turn(stripe, calls, actor, call)
            except StripeRefused as error:
                if (error.reason, error.param) != ("resource_missing", "customer"):
                    raise
                await self._door.publish(lambda tx, gone=customer: self._customers.gone(tx, actor.user_id, gone))
            else:
                if session is not None:
                    return session
        raise ChangePending

    async def _turn(self, stripe: RawStripe, calls: Calls, actor: Actor, call: Call) -> Session | None:
        """Return the session for a wish; None when somebody was quicker, whose session must be looked at first.

        The last session is read before the subscriptions: one that was paid in between is seen by one of the two.
        """
        async with self._door.read() as tx:
            last = await calls.last(tx, call.lane)
        open_session = await _open_session(stripe, last)
        if await self._refuse_second(stripe, calls, actor.user_id, call.params["customer"]):
            call = _without_trial(call)
        if open_session is not None and last is not None:
            if last["meaning"] == call.meaning:
                return _shown(open_session)
            await self._close(stripe, calls, actor.user_id, open_session["id"])
        placed = await self._order(calls, actor, call, last)
        if placed is None:
            return None
        made = await calls.result(placed["id"])
        return _shown(await stripe.read(f"checkout/sessions/{made['id']}"))

    async def portal(self, actor: Actor, return_url: str | None, customer: str | None) -> str:
        """Return the address of Stripe's portal for the caller's own customer. Raises Forbidden, NoCustomer."""
        stripe, _ = self._offered(None)
        back = self._returns.to(return_url)
        own = await self._customers.known(actor.user_id)
        if customer is not None and customer != own:
            raise Forbidden("this customer is not you")
        if own is None:
            raise NoCustomer
        key = f"openbell/portal/{self._new_id()}"  # another one each time: they change nothing and are soon over
        session = await ask(stripe, "billing_portal/sessions", {"customer": own, "return_url": back}, key)
        return str(session["url"])

    async def invoices(self, user_id: UUID, limit: int, before: str | None) -> Page:
        """Return a page of the caller's own invoices; somebody who never paid by card has none."""
        if self._calls is None or (own := await self._customers.known(user_id)) is None:
            return Page((), None)
        stripe = self._calls.stripe
        params: dict[str, Any] = {"customer": own, "limit": limit}
        if before is not None:
            await _own_invoice(stripe, own, before)
            params["starting_after"] = before
        page = await stripe.read("invoices", params)
        found: Sequence[Json] = page["data"]
        return Page(found, found[-1]["id"] if found and page.get("has_more") else None)

    # --- steps of a checkout ----------------------------------------------------------------------

    def _offered(self, plan: Plan | None) -> tuple[RawStripe, Calls]:
        if self._calls is None:
            raise NotOffered("payment by card is not offered here")
        if plan is not None and plan.stripe_price is None:
            raise NotOffered("this plan is not sold by card", plan=plan.name)
        return self._calls.stripe, self._calls

    async def _trial_days(self, user_id: UUID, plan: Plan) -> int:
        """Return how long the user may try the plan. Raises AlreadySubscribed."""
        async with self._door.read() as tx:
            if await self._subscriptions.open(tx, user_id) is not None:
                raise AlreadySubscribed
            before = await self._subscriptions.latest(tx, user_id)
        return plan.trial_days if before is None else 0

    async def _refuse_second(self, stripe: RawStripe, calls: Calls, user_id: UUID, customer: str) -> bool:
        """Raise AlreadySubscribed for what Stripe knows and we may not yet; end what nobody pays for any more.

        Return whether the customer has ever had a subscription that began.
        """
        known = [one async for one in pages(stripe, "subscriptions", {"customer": customer, "status": "all"})]
        blocking = [one["id"] for one in known if one["status"] in BLOCKING]
        if blocking:
            async with self._door.transaction() as tx:
                for one in blocking:
                    await calls.mark(tx, "subscription", one)
            raise AlreadySubscribed
        for one in known:
            if one["status"] == "unpaid":  # paid after all, it would come back beside the new one
                lane = f"subscription/{one['id']}"
                await calls.do(Call("subscription.cancel", lane, user_id, f"subscriptions/{one['id']}", {}, "delete"))
        return any(one["status"] != "incomplete_expired" for one in known)

    async def _close(self, stripe: RawStripe, calls: Calls, user_id: UUID, session: str) -> None:
        """Close a session, so that it cannot be paid. Raises AlreadySubscribed when it just was."""
        path = f"checkout/sessions/{session}"
        try:
            status = (await calls.do(Call("checkout.expire", path, user_id, f"{path}/expire", {}))).get("status")
        except StripeRefused:
            status = (await stripe.read(path))["status"]
        if status == "complete":
            raise AlreadySubscribed

    async def _order(self, calls: Calls, actor: Actor, call: Call, seen: Row | None) -> Row | None:
        """Order the session unless the lane has moved since it was looked at; the same wish on its way is joined."""

        async def order(tx: Tx) -> Done[Row | None]:
            await self._subscriptions.lock_user(tx, actor.user_id)
            if await self._subscriptions.open(tx, actor.user_id) is not None:
                raise AlreadySubscribed
            ordered = await calls.order_after(tx, call, seen)
            if ordered is None:
                return Done(None)
            placed, new = ordered
            if not new:
                return Done(placed)
            told = self._audit.of(actor, "begin.checkout", str(actor.user_id), plan=call.params["metadata"]["plan"])
            return Done(placed, [told])

        return await self._door.run(order)


async def _open_session(stripe: RawStripe, last: Row | None) -> Json | None:
    """Return the session that the user can still pay."""
    if last is None or last["kind"] != "checkout.create" or last["status"] != "done":
        return None
    found = await stripe.read(f"checkout/sessions/{last['result']['id']}")
    return found if found["status"] == "open" else None


async def _own_invoice(stripe: RawStripe, customer: str, invoice: str) -> None:
    """Raise NotFound for an invoice that is not the customer's."""
    with suppress(NoSuchObject):
        if (await stripe.read(f"invoices/{invoice}"))["customer"] == customer:
            return
    raise NotFound("there is no such invoice")


async def _promotion(stripe: RawStripe, code: str | None, customer: str) -> str | None:
    """Return the id of a promotion code that people may type. Raises CouponInvalid."""
    if code is None:
        return None
    found = await stripe.read("promotion_codes", {"code": code, "active": "true", "limit": 10})
    for one in found["data"]:
        if one.get("active") and one.get("customer") in {None, customer}:
            return str(one["id"])
    raise CouponInvalid


def _session(
    user_id: UUID,
    customer: str,
    plan: Plan,
    *,
    trial_days: int,
    promotion: str | None,
    back: tuple[str, str],
    now: datetime,
) -> Call:
    about = {"user_id": str(user_id), "plan": plan.name}
    wish: dict[str, Any] = {
        "mode": "subscription",
        "customer": customer,
        "client_reference_id": str(user_id),
        "line_items": [{"price": plan.stripe_price, "quantity": 1}],
        "success_url": back[0],
        "cancel_url": back[1],
        "metadata": about,
        "subscription_data": {"metadata": about},
    }
    if trial_days:
        wish["subscription_data"] = {"metadata": about, "trial_period_days": trial_days}
    if promotion is not None:
        wish["discounts"] = [{"promotion_code": promotion}]
    params = {**wish, "expires_at": int((now + OPEN_FOR).timestamp())}
    return Call("checkout.create", f"checkout/{user_id}", user_id, "checkout/sessions", params, wish=wish)


def _without_trial(call: Call) -> Call:
    """Return the call for somebody who has had a subscription that we have not heard of."""
    about = {"subscription_data": {"metadata": call.params["metadata"]}}
    return replace(call, params={**call.params, **about}, wish={**(call.wish or {}), **about})


def _shown(session: Json) -> Session:
    expires = session.get("expires_at")
    if session["status"] != "open":
        raise AlreadySubscribed if session["status"] == "complete" else ChangePending
    return Session(session["id"], session["url"], None if expires is None else datetime.fromtimestamp(expires, UTC))
