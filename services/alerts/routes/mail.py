"""What providers of mail call, the page that ends mail, and the list of addresses that get none.

What would surprise you: opening the link in a mail changes nothing, for programs that look through mail open links as
well; its button does it, and so does a mail program that posts to it by itself (RFC 8058). A link that is not valid any
more opens a page too, for a person reads the answer.
"""

import html
from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody, QueryParameter
from pydantic import BaseModel, ConfigDict, Field

from services.alerts.domain.links import LinkRefused
from services.alerts.routes.common import actor_of
from services.alerts.service.mail import Mail
from services.alerts.store.mail import MailStore
from shared.errors import TooLarge
from shared.http import Caller, Who, header
from shared.messaging.door import Door

MAX_BYTES: Final = 2_000_000
ALL: Final = "all"

Token = Annotated[str, QueryParameter(min_length=1, max_length=1000)]
Raw = Request[Any, Any, Any]


class Address(BaseModel):
    """An address that is to get mail again."""

    model_config = ConfigDict(extra="forbid")

    address: str = Field(min_length=3, max_length=320)


class SuppressionView(msgspec.Struct, frozen=True):
    """An address that gets no mail: its SHA-256, because of what, and what the provider said."""

    address_hash: str
    kind: str
    detail: str
    provider: str
    at: datetime


def handlers(mail: Mail, store: MailStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""
    return [*_webhook_routes(mail), *_link_routes(mail, door), *_suppression_routes(mail, store, door)]


def _webhook_routes(mail: Mail) -> list[HTTPRouteHandler]:
    @post("/alerts/webhooks/sendgrid", caller=Caller.PROVIDER, status_code=200)
    async def sendgrid_webhook(request: Raw) -> dict[str, int]:
        """Take a webhook of SendGrid's: 200 when its events are kept, the first time and each time after."""
        scope, body = request.scope, await _body(request)
        signature = header(scope, b"x-twilio-email-event-webhook-signature")
        timestamp = header(scope, b"x-twilio-email-event-webhook-timestamp")
        return {"new": await mail.sendgrid(body, signature, timestamp)}

    @post("/alerts/webhooks/resend", caller=Caller.PROVIDER, status_code=200)
    async def resend_webhook(request: Raw) -> dict[str, int]:
        """Take a webhook of Resend's: 200 when its event is kept, the first time and each time after."""
        scope, body = request.scope, await _body(request)
        named = (header(scope, name) for name in (b"svix-id", b"svix-timestamp", b"svix-signature"))
        return {"new": await mail.resend(body, *named)}

    return [sendgrid_webhook, resend_webhook]


def _link_routes(mail: Mail, door: Door) -> list[HTTPRouteHandler]:
    @get("/links/unsubscribe", caller=Caller.LINK, media_type=MediaType.HTML)
    async def show_unsubscribe(token: Token) -> Response[str]:
        """Show the page whose buttons end mails of one kind, or all mail, to an address."""
        try:
            about = mail.check_link(token)
        except LinkRefused:
            return _refused()
        buttons = _button(token, f"No more mails about {about.name}") if about.kinds else ""
        return _page("Stop Openbell's mail to this address?", buttons + _button(token, "No more mail at all", ALL))

    @post("/links/unsubscribe", caller=Caller.LINK, media_type=MediaType.HTML, status_code=200)
    async def unsubscribe(
        token: Token, of: Annotated[Literal["kind", "all"], QueryParameter(description="what ends")] = "kind"
    ) -> Response[str]:
        """End mails of one kind, or all, to an address, by the page or a mail program. Again changes nothing."""
        try:
            about = await door.run(lambda tx: mail.unsubscribe(token, tx, everything=of == ALL))
        except LinkRefused:
            return _refused()
        what = "No more mail comes" if of == ALL or not about.kinds else f"No more mails about {about.name} come"
        text = f"<p>{html.escape(what)} to this address. Your settings in Openbell bring them back.</p>"
        return _page("Unsubscribed", text + ("" if of == ALL else _button(token, "No more mail at all", ALL)))

    return [show_unsubscribe, unsubscribe]


def _suppression_routes(mail: Mail, store: MailStore, door: Door) -> list[HTTPRouteHandler]:
    @get("/api/alerts/suppressions", caller=Caller.ADMIN)
    async def list_suppressions(
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    ) -> list[SuppressionView]:
        """Return the newest addresses that get no mail, by their hash."""
        async with door.read() as tx:
            rows = await store.suppressions(tx, limit)
        return [
            SuppressionView(row["address_hash"], row["kind"], row["detail"], row["provider"], row["at"]) for row in rows
        ]

    @post("/api/alerts/suppressions/lift", caller=Caller.ADMIN, status_code=204)
    async def lift_suppression(request: Raw, identity: Who, data: JSONBody[Address]) -> None:
        """Let an address get mail again; its user sets the channel anew."""
        actor = actor_of(request, identity)
        await door.run(lambda tx: mail.lift(actor, data.address, tx))

    return [list_suppressions, lift_suppression]


async def _body(request: Raw) -> bytes:
    body = bytearray()
    async for chunk in request.stream():  # as it came: it is signed
        body += chunk
        if len(body) > MAX_BYTES:
            raise TooLarge(f"a webhook has at most {MAX_BYTES} bytes")
    return bytes(body)


def _button(token: str, name: str, of: str = "kind") -> str:
    action = html.escape(f"?token={token}&of={of}")
    return f'<form method="post" action="{action}"><button>{html.escape(name)}</button></form>'


def _refused() -> Response[str]:
    body = "<p>It is older than 90 days, or was not copied whole. Your settings in Openbell end mail as well.</p>"
    return _page("This link is not valid any more", body, status=LinkRefused.status)


def _page(title: str, body: str, status: int = 200) -> Response[str]:
    text = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><h1>{title}</h1>{body}</html>\n"
    )
    headers = {"cache-control": "no-store", "referrer-policy": "no-referrer"}  # the address of the page is the secret
    return Response(text, media_type=MediaType.HTML, headers=headers, status_code=status)
