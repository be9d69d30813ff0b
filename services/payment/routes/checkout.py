"""Buying by card. Users reach only what is theirs; card data is typed at Stripe and never passes here."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final

from litestar import Request, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody, QueryParameter
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from services.payment.ports import Json
from services.payment.routes.subscriptions import actor_of
from services.payment.service.audit import Audit
from services.payment.service.checkout import Checkouts, Wish
from shared.http import Caller, Who

HttpRequest = Request[Any, Any, Any]

Url = Annotated[str, Field(min_length=1, max_length=2000)]
_INVOICE: Final = r"^in_[A-Za-z0-9_]{1,250}\Z"  # `$` would let a line feed at the end pass


class CheckoutBody(BaseModel):
    """What to buy. The addresses, where Stripe sends people back to, must be of OPENBELL_PAYMENT_RETURN_ORIGINS."""

    model_config = ConfigDict(extra="forbid")

    plan: str = Field(min_length=1, max_length=64)
    coupon: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    success_url: Url | None = None
    cancel_url: Url | None = None


class CheckoutSession(BaseModel):
    """Where the user pays. While it is open, the same request is answered with the same session."""

    id: str
    url: str
    expires_at: AwareDatetime | None


class PortalBody(BaseModel):
    """Where the portal leads back to. Only the caller's own customer may be named."""

    model_config = ConfigDict(extra="forbid")

    return_url: Url | None = None
    customer: str | None = Field(default=None, pattern=r"^cus_[A-Za-z0-9_]{1,250}$")


class Portal(BaseModel):
    """Stripe's page where a user changes cards and sees invoices, for a few minutes."""

    url: str


class Invoice(BaseModel):
    """An invoice. Amounts are in minor units of the currency."""

    id: str
    number: str | None
    status: str | None
    currency: str
    total_minor: int
    paid_minor: int
    remaining_minor: int
    created_at: AwareDatetime
    page_url: str | None
    pdf_url: str | None


class Invoices(BaseModel):
    """Some of a user's invoices, newest first. `next` is the `before` of the next page."""

    invoices: list[Invoice]
    next: str | None


def handlers(checkouts: Checkouts, audit: Audit) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/pay/checkout", caller=Caller.USER)
    async def checkout(request: HttpRequest, identity: Who, data: JSONBody[CheckoutBody]) -> CheckoutSession:
        """Begin to buy a plan by card; answers where to pay. 409 ALREADY_SUBSCRIBED while a subscription is open."""
        actor = actor_of(request, identity)
        wish = Wish(data.plan, data.coupon, data.success_url, data.cancel_url)
        async with audit.refusals(actor, "checkout", plan=data.plan):
            session = await checkouts.begin(actor, wish)
        return CheckoutSession(id=session.id, url=session.url, expires_at=session.expires_at)

    @post("/pay/portal", caller=Caller.USER)
    async def portal(request: HttpRequest, identity: Who, data: JSONBody[PortalBody]) -> Portal:
        """Open Stripe's portal for your own customer. 409 NO_CUSTOMER when you never paid by card."""
        actor = actor_of(request, identity)
        async with audit.refusals(actor, "portal", customer=data.customer):
            return Portal(url=await checkouts.portal(actor, data.return_url, data.customer))

    @get("/pay/invoices", caller=Caller.USER)
    async def invoices(
        identity: Who,
        limit: Annotated[int, QueryParameter(ge=1, le=100)] = 20,
        before: Annotated[str | None, QueryParameter(pattern=_INVOICE)] = None,
    ) -> Invoices:
        """Return your invoices of card payments, newest first."""
        page = await checkouts.invoices(identity.user_id, limit, before)
        return Invoices(invoices=[_invoice(one) for one in page.invoices], next=page.next)

    return [checkout, portal, invoices]


def _invoice(one: Json) -> Invoice:
    return Invoice(
        id=one["id"],
        number=one.get("number"),
        status=one.get("status"),
        currency=str(one["currency"]).upper(),
        total_minor=one["total"],
        paid_minor=one["amount_paid"],
        remaining_minor=one["amount_remaining"],
        created_at=datetime.fromtimestamp(one["created"], UTC),
        page_url=one.get("hosted_invoice_url"),
        pdf_url=one.get("invoice_pdf"),
    )
