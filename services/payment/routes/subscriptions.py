"""What a user has, and what they do with it."""

from collections.abc import Sequence
from typing import Annotated, Any
from uuid import UUID

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody, QueryParameter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.payment.service.audit import Actor, Audit
from services.payment.service.changes import Changed, Changes
from services.payment.service.subscriptions import Subscriptions
from shared.contracts.payment import Provider, SubscriptionStatus
from shared.http import Caller, Who, exchange_of
from shared.identity import Identity
from shared.messaging.door import Door

HttpRequest = Request[Any, Any, Any]


class Subscription(BaseModel):
    """A user's subscription: the one that is not over, else the last one."""

    id: UUID
    provider: Provider
    plan: str
    status: SubscriptionStatus
    entitlements: Sequence[str]
    entitled_until: AwareDatetime | None
    current_period_end: AwareDatetime | None
    trial_end: AwareDatetime | None
    cancel_at_period_end: bool


class Change(BaseModel):
    """A change that was carried out. Where Stripe bills, the subscription shows it a moment later: not `applied`."""

    subscription: Subscription
    applied: bool


class PlanBody(BaseModel):
    """The plan to have instead. `at` is the moment of a preview, so that the change costs what it said."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(min_length=1, max_length=64)
    at: AwareDatetime | None = None


class PlanPreview(BaseModel):
    """What a change of plan would cost, in minor units of the currency.

    `due_now_minor` is asked for at once, `proration_minor` with the next invoice (less than zero: credited).
    """

    plan: str
    at: AwareDatetime
    currency: str
    due_now_minor: int
    proration_minor: int
    period_end: AwareDatetime | None


def handlers(subscriptions: Subscriptions, changes: Changes, audit: Audit, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/pay/subscription", caller=Caller.USER)
    async def subscription(identity: Who) -> Subscription:
        """Return your subscription; 404 when you never had one."""
        async with door.read() as tx:
            found: dict[str, Any] = await subscriptions.shown(tx, identity.user_id)
        return Subscription(**found)

    @post("/pay/cancel", caller=Caller.USER, status_code=200)
    async def cancel(
        request: HttpRequest,
        identity: Who,
        now: Annotated[bool, QueryParameter(description="End it at once; nothing is refunded")] = False,  # noqa: FBT002 - a query parameter
    ) -> Change:
        """End your subscription with what is paid; or at once, and nothing is given back, nor a debit on its way."""
        actor = actor_of(request, identity)
        async with audit.refusals(actor, "cancel"):
            return _change(await changes.cancel(actor, now=now))

    @post("/pay/resume", caller=Caller.USER, status_code=200)
    async def resume(request: HttpRequest, identity: Who) -> Change:
        """Take back a cancellation before it has happened, or end a pause."""
        actor = actor_of(request, identity)
        async with audit.refusals(actor, "resume"):
            return _change(await changes.resume(actor))

    @post("/pay/change-plan", caller=Caller.USER, status_code=200)
    async def change_plan(
        request: HttpRequest,
        identity: Who,
        data: JSONBody[PlanBody],
        preview: Annotated[bool, QueryParameter(description="Change nothing; say what it would cost")] = False,  # noqa: FBT002 - a query parameter
    ) -> Change | PlanPreview:
        """Change your plan. What is paid counts: the difference is prorated; `preview=true` tells it beforehand."""
        actor = actor_of(request, identity)
        async with audit.refusals(actor, "change-plan", plan=data.plan):
            if not preview:
                return _change(await changes.change_plan(actor, data.plan, data.at))
            found = await changes.preview(actor, data.plan, data.at)
        return PlanPreview(
            plan=found.plan,
            at=found.at,
            currency=found.currency,
            due_now_minor=found.due_now_minor,
            proration_minor=found.proration_minor,
            period_end=found.period_end,
        )

    return [subscription, cancel, resume, change_plan]


def actor_of(request: HttpRequest, identity: Identity) -> Actor:
    """Return who asks, and in which request."""
    return Actor(identity.user_id, exchange_of(request.scope).request_id)


def _change(changed: Changed) -> Change:
    return Change(subscription=Subscription(**changed.subscription), applied=changed.applied)
