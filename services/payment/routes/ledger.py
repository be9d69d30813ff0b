"""For administrators: the ledger as CSV, and plans that a person grants."""

from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final
from uuid import UUID

from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.response import Stream
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.payment.routes.subscriptions import Subscription
from services.payment.service.audit import Actor, Audit
from services.payment.service.ledger import export
from services.payment.service.manual import Grant, Manual, Paid
from services.payment.store.ledger import LedgerStore
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Invalid
from shared.http import Caller, Who, exchange_of
from shared.idempotency import answer_once
from shared.identity import Identity
from shared.messaging.door import Done, Door

LONGEST: Final = timedelta(days=3660)

HttpRequest = Request[Any, Any, Any]
Text = Annotated[str, Field(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]+$")]


class PaidBody(BaseModel):
    """What came in by another way. `reference` names the payment there (a transfer's number), each once."""

    model_config = ConfigDict(extra="forbid")

    amount: Decimal
    currency: str = Field(max_length=20)
    reference: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$")


class GrantBody(BaseModel):
    """A plan until a time, and why. Where one was granted before, it becomes this one."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(max_length=64)
    until: AwareDatetime
    reason: Text
    paid: PaidBody | None = None


class EndBody(BaseModel):
    """Why a granted plan ends."""

    model_config = ConfigDict(extra="forbid")

    reason: Text


def handlers(manual: Manual, audit: Audit, store: LedgerStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""
    return [*_manual_routes(manual, audit, door), _export_route(store, audit, door)]


def _manual_routes(manual: Manual, audit: Audit, door: Door) -> list[HTTPRouteHandler]:
    @post("/pay/manual/{user_id:uuid}", caller=Caller.ADMIN)
    async def grant_plan(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[GrantBody]
    ) -> Response[bytes]:
        """Grant a user a plan until a time, or change one that was granted.

        An Idempotency-Key makes it harmless to repeat; the reference of a payment keeps it from being booked twice.
        """
        actor = _actor(request, identity)
        paid = Paid(data.paid.amount, data.paid.currency, data.paid.reference) if data.paid is not None else None
        asked = Grant(data.plan, _utc(data.until), data.reason, paid)

        async def grant(tx: Tx) -> Done[Subscription]:
            done = await manual.grant(actor, user_id, asked, tx)
            return Done(Subscription(**done.value), done.events)

        async with audit.refusals(actor, "grant.manual_plan", user=str(user_id)):
            return await answer_once(request, door, grant, status_code=201)

    @post("/pay/manual/{user_id:uuid}/end", caller=Caller.ADMIN)
    async def end_plan(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[EndBody]
    ) -> Response[bytes]:
        """End a plan that was granted, now."""
        actor = _actor(request, identity)

        async def end(tx: Tx) -> Done[Subscription]:
            done = await manual.end(actor, user_id, data.reason, tx)
            return Done(Subscription(**done.value), done.events)

        async with audit.refusals(actor, "end.manual_plan", user=str(user_id)):
            return await answer_once(request, door, end, status_code=200)

    return [grant_plan, end_plan]


def _export_route(store: LedgerStore, audit: Audit, door: Door) -> HTTPRouteHandler:
    @get("/pay/ledger/export", caller=Caller.ADMIN, media_type="text/csv")
    async def export_ledger(
        request: HttpRequest,
        identity: Who,
        since: Annotated[datetime, QueryParameter(name="from")],
        until: Annotated[datetime, QueryParameter(name="to")],
    ) -> Stream:
        """Return what moved from `from` up to but without `to`, as CSV: a line for each posting, debit or credit."""
        since, until = _utc(since), _utc(until)
        if not timedelta() < until - since <= LONGEST:
            raise Invalid("`from` is before `to`, ten years at most")
        told = {"from": since.isoformat(), "to": until.isoformat()}
        await door.publish(lambda _: _told(audit.of(_actor(request, identity), "export.ledger", "ledger", **told)))
        name = f"ledger-{since:%Y%m%dT%H%M%SZ}-{until:%Y%m%dT%H%M%SZ}.csv"
        headers = {
            "content-disposition": f'attachment; filename="{name}"',
            "cache-control": "no-store",
            "x-content-type-options": "nosniff",
        }
        lines: AsyncGenerator[bytes] = export(store, door, since, until)
        return Stream(lines, media_type="text/csv; charset=utf-8; header=present", headers=headers)

    return export_ledger


async def _told(event: Event) -> list[Event]:
    return [event]


def _utc(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise Invalid("a time says its zone: 2026-11-01T00:00:00Z")
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise Invalid("this time is beyond the calendar") from error


def _actor(request: HttpRequest, identity: Identity) -> Actor:
    return Actor(identity.user_id, exchange_of(request.scope).request_id)
