"""Where a user's alerts go. Users reach only their own.

What would surprise you: the link that confirms an address opens a page whose button does it, because programs that
look through mail open links as well.
"""

import html
from datetime import datetime
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import MediaType, Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler
from pydantic import BaseModel, ConfigDict, Field

from services.alerts.domain.channels import target_id
from services.alerts.routes.common import HttpRequest, actor_of
from services.alerts.service import Channels, ChannelSet
from services.alerts.service.targets import shown_of
from services.alerts.store.audience import AudienceStore
from shared.contracts.alerts import Channel
from shared.errors import NotFound
from shared.http import Caller, Who
from shared.identity import own
from shared.messaging.door import Door

Token = Annotated[str, QueryParameter(min_length=1, max_length=1000)]


class ChannelBody(BaseModel):
    """Where a channel goes.

    A Discord webhook's URL, an e-mail address (left out: the one of sign-up), a URL for signed webhooks, the JSON of a
    browser's push subscription, an app's registration token of FCM, or an Apprise URL.
    """

    model_config = ConfigDict(extra="forbid")

    target: str | None = Field(default=None, min_length=3, max_length=4000)


class ChannelView(msgspec.Struct, frozen=True):
    """One target of a channel. A webhook's URL is a secret: `target` shows enough to recognise it.

    Nothing goes to a channel that is not `enabled`; `reason` says why. An address is `confirmed` by its reader.
    `secret` signs what goes to a webhook: it is shown once, when it is made.
    """

    channel: str
    id: str
    target: str
    enabled: bool
    confirmed: bool
    reason: str | None
    updated_at: datetime
    secret: str | None = None


class PushKey(msgspec.Struct, frozen=True):
    """What `pushManager.subscribe` takes as applicationServerKey, base64url."""

    public_key: str


def handlers(channels: Channels, audience: AudienceStore, door: Door) -> list[ControllerRouterHandler]:
    """Return the routes."""
    return [*_channel_routes(channels, audience, door), *_link_routes(channels, door)]


def _channel_routes(channels: Channels, audience: AudienceStore, door: Door) -> list[HTTPRouteHandler]:
    @get("/api/alerts/{user_id:uuid}/channels", caller=Caller.USER)
    async def list_channels(identity: Who, user_id: FromPath[UUID]) -> list[ChannelView]:
        """Return where the user's alerts go besides the app."""
        own(identity, user_id)
        async with door.read() as tx:
            return [_channel(ChannelSet(row)) for row in await audience.channels(tx, user_id)]

    @put("/api/alerts/{user_id:uuid}/channels/{channel:str}", caller=Caller.USER)
    async def set_channel(
        request: HttpRequest,
        identity: Who,
        user_id: FromPath[UUID],
        channel: FromPath[Channel],
        data: JSONBody[ChannelBody],
    ) -> ChannelView:
        """Set where a channel goes, or where it goes as well if it may have several targets.

        A target is enabled at once, an address when its reader has confirmed it.
        """
        own(identity, user_id)
        actor, target = actor_of(request, identity), data.target
        await channels.check(channel, target)
        return _channel(await door.run(lambda tx: channels.set(actor, user_id, channel, target, tx)))

    @delete("/api/alerts/{user_id:uuid}/channels/{channel:str}", caller=Caller.USER)
    async def remove_channel(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], channel: FromPath[Channel]
    ) -> None:
        """Remove a channel with all its targets."""
        own(identity, user_id)
        actor = actor_of(request, identity)
        await door.run(lambda tx: channels.remove(actor, user_id, channel, None, tx))

    @delete("/api/alerts/{user_id:uuid}/channels/{channel:str}/{target:str}", caller=Caller.USER)
    async def remove_target(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], channel: FromPath[Channel], target: FromPath[str]
    ) -> None:
        """Remove one target of a channel, by its id."""
        own(identity, user_id)
        actor = actor_of(request, identity)
        await door.run(lambda tx: channels.remove(actor, user_id, channel, target, tx))

    @post("/api/alerts/{user_id:uuid}/channels/{channel:str}/confirmation", caller=Caller.USER, status_code=200)
    async def ask_again(identity: Who, user_id: FromPath[UUID], channel: FromPath[Channel]) -> ChannelView:
        """Send the mail that confirms an address once more; five a day at most."""
        own(identity, user_id)
        return _channel(ChannelSet(await door.run(lambda tx: channels.ask_again(user_id, channel, tx))))

    # Not "channels/webhook/...": beside a fixed word the router does not try the parameter, and finds no other route.
    @post("/api/alerts/{user_id:uuid}/channels/{channel:str}/{target:str}/secret", caller=Caller.USER, status_code=200)
    async def new_secret(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], channel: FromPath[Channel], target: FromPath[str]
    ) -> ChannelView:
        """Give a webhook another secret; the one before it signs as well, until the next."""
        own(identity, user_id)
        if channel != "webhook":
            raise NotFound("only webhooks have a secret")
        actor = actor_of(request, identity)
        return _channel(await door.run(lambda tx: channels.new_secret(actor, user_id, target, tx)))

    @get("/api/alerts/{user_id:uuid}/channels/{channel:str}/key", caller=Caller.USER)
    async def push_key(identity: Who, user_id: FromPath[UUID], channel: FromPath[Channel]) -> PushKey:
        """Return the key that a browser subscribes with, of `webpush`."""
        own(identity, user_id)
        if channel != "webpush":
            raise NotFound("only webpush has a key")
        return PushKey(channels.push_key())

    return [list_channels, set_channel, remove_channel, remove_target, ask_again, new_secret, push_key]


def _link_routes(channels: Channels, door: Door) -> list[HTTPRouteHandler]:
    @get("/links/confirm-email", caller=Caller.LINK, media_type=MediaType.HTML)
    async def show_link(token: Token) -> Response[str]:
        """Show the page whose button confirms a mail address."""
        channels.check_link(token)
        button = (
            f'<form method="post" action="?token={html.escape(token)}"><button>Confirm this address</button></form>'
        )
        return _page("Receive Openbell's alerts at this address?", button)

    @post("/links/confirm-email", caller=Caller.LINK, media_type=MediaType.HTML, status_code=200)
    async def confirm(token: Token) -> Response[str]:
        """Confirm a mail address: its user's alerts go there from now on. Again changes nothing."""
        await door.run(lambda tx: channels.confirm(token, tx))
        return _page("Confirmed", "<p>Openbell's alerts come to this address from now on.</p>")

    return [show_link, confirm]


def _page(title: str, body: str) -> Response[str]:
    text = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>{body}</html>\n'
    )
    headers = {"cache-control": "no-store", "referrer-policy": "no-referrer"}  # the address of the page is the secret
    return Response(text, media_type=MediaType.HTML, headers=headers)


def _channel(known: ChannelSet) -> ChannelView:
    row = known.row
    return ChannelView(
        row["channel"],
        target_id(row["lane"]),
        shown_of(row),
        row["enabled"],
        row["confirmed_at"] is not None,
        row["reason"],
        row["updated_at"],
        known.secret,
    )
