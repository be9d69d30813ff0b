"""Door 2, HTTP: a user's alerts, channels and rules. Users reach only their own.

What would surprise you: the link that confirms an address opens a page whose button does it, because programs that
look through mail open links as well.
"""

import html
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import MediaType, Request, Response, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody, QueryParameter
from litestar.types import ControllerRouterHandler
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.alerts.domain.channels import masked
from services.alerts.domain.text import SIMULATED_NOTE
from services.alerts.service import Actor, Alerts, NewRule
from services.alerts.store.alerts import AlertsStore
from services.alerts.store.audience import AudienceStore
from shared.contracts.alerts import Channel
from shared.contracts.symbols import PATTERN
from shared.db import Row
from shared.http import Caller, Who, exchange_of
from shared.http.cursors import cursor_after, parse_cursor
from shared.idempotency import answer_once
from shared.identity import Identity, own
from shared.messaging.door import Done, Door

MAX_SYMBOLS: Final = 200

HttpRequest = Request[Any, Any, Any]

Token = Annotated[str, QueryParameter(min_length=1, max_length=1000)]
Symbol = Annotated[str, StringConstraints(pattern=f"^(?i:{PATTERN})$", to_upper=True, strip_whitespace=True)]


class RuleBody(BaseModel):
    """A rule: what reaches its thresholds, of its symbols (none means all), becomes an alert."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")
    symbols: list[Symbol] = Field(default_factory=list[Symbol], max_length=MAX_SYMBOLS)
    min_score: float = Field(default=60.0, ge=0, le=100, allow_inf_nan=False)
    min_premium_usd: Decimal = Field(default=Decimal(0), ge=0, le=Decimal(10) ** 12, decimal_places=2)


class ChannelBody(BaseModel):
    """Where a channel goes: a Discord webhook's URL or an e-mail address (left out: the one of sign-up)."""

    model_config = ConfigDict(extra="forbid")

    target: str | None = Field(default=None, min_length=3, max_length=500)


class DeliveryView(msgspec.Struct, frozen=True):
    """One delivery of an alert."""

    id: UUID
    channel: str
    status: str
    attempts: int
    created_at: datetime
    settled_at: datetime | None
    next_attempt_at: datetime | None
    detail: str | None


class AlertView(msgspec.Struct, frozen=True):
    """One alert: its best few contracts, and how many there are in all."""

    id: UUID
    rule_id: UUID
    rule: str
    symbol: str
    session: str
    title: str
    simulated: bool
    note: str | None
    top_score: float
    contract_count: int
    premium_usd: str
    contracts: Any
    source: str
    delay_s: float
    as_of: datetime
    created_at: datetime
    updated_at: datetime
    opened_at: datetime | None
    notifications: int
    deliveries: list[DeliveryView]


class AlertsPage(msgspec.Struct, frozen=True):
    """Some of a user's alerts, newest first. `next` is the `before` of the next page."""

    alerts: list[AlertView]
    total: int
    unopened: int
    next: str | None


class Stats(msgspec.Struct, frozen=True):
    """Figures over a user's alerts. `deliveries` counts by channel and status."""

    total: int
    unopened: int
    simulated: int
    notifications: int
    latest_at: datetime | None
    deliveries: dict[str, dict[str, int]]


class Opened(msgspec.Struct, frozen=True):
    """When the alert was first opened."""

    id: UUID
    opened_at: datetime


class ChannelView(msgspec.Struct, frozen=True):
    """A channel. A webhook's URL is a secret: `target` shows enough to recognise it.

    Nothing goes to a channel that is not `enabled`; `reason` says why. An address is `confirmed` by its reader.
    """

    channel: str
    target: str
    enabled: bool
    confirmed: bool
    reason: str | None
    updated_at: datetime


class RuleView(msgspec.Struct, frozen=True):
    """A rule. The one of kind "watchlist" follows the user's watchlist and settings."""

    id: UUID
    kind: str
    name: str
    symbols: list[str]
    min_score: float
    min_premium_usd: str
    enabled: bool


def handlers(alerts: Alerts, store: AlertsStore, audience: AudienceStore, door: Door) -> list[ControllerRouterHandler]:
    """Return the routes."""
    return [
        *_alert_routes(alerts, store, door),
        *_channel_routes(alerts, audience, door),
        *_rule_routes(alerts, audience, door),
        *_link_routes(alerts, door),
    ]


def _alert_routes(alerts: Alerts, store: AlertsStore, door: Door) -> list[HTTPRouteHandler]:
    @get("/api/alerts/{user_id:uuid}", caller=Caller.USER)
    async def list_alerts(
        identity: Who,
        user_id: FromPath[UUID],
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
        before: Annotated[str | None, QueryParameter(max_length=100)] = None,
    ) -> AlertsPage:
        """Return the user's alerts, newest first, with the state of their deliveries."""
        own(identity, user_id)
        cursor = parse_cursor(before)
        async with door.read() as tx:
            rows = await store.page(tx, user_id, limit + 1, cursor)
            deliveries = await store.deliveries_of(tx, [row["alert_id"] for row in rows])
            counts = await store.counts(tx, user_id)
        page = rows[:limit]
        more = cursor_after(page[-1]["created_at"], page[-1]["alert_id"]) if len(rows) > limit else None
        views = [_alert(row, deliveries.get(row["alert_id"], [])) for row in page]
        return AlertsPage(views, counts["total"], counts["unopened"], more)

    @post("/api/alerts/{user_id:uuid}/{alert_id:uuid}/opened", caller=Caller.USER, status_code=200)
    async def open_alert(identity: Who, user_id: FromPath[UUID], alert_id: FromPath[UUID]) -> Opened:
        """Note that the user opened an alert. Again changes nothing."""
        own(identity, user_id)
        return Opened(alert_id, await door.run(lambda tx: alerts.open_alert(user_id, alert_id, tx)))

    @get("/api/alerts/{user_id:uuid}/stats", caller=Caller.USER)
    async def stats(identity: Who, user_id: FromPath[UUID]) -> Stats:
        """Return figures over all of the user's alerts."""
        own(identity, user_id)
        async with door.read() as tx:
            counts = await store.counts(tx, user_id)
            deliveries = await store.delivery_counts(tx, user_id)
        return Stats(
            total=counts["total"],
            unopened=counts["unopened"],
            simulated=counts["simulated"],
            notifications=counts["notifications"],
            latest_at=counts["latest_at"],
            deliveries=deliveries,
        )

    return [list_alerts, open_alert, stats]


def _channel_routes(alerts: Alerts, audience: AudienceStore, door: Door) -> list[HTTPRouteHandler]:
    @get("/api/alerts/{user_id:uuid}/channels", caller=Caller.USER)
    async def list_channels(identity: Who, user_id: FromPath[UUID]) -> list[ChannelView]:
        """Return where the user's alerts go besides the app."""
        own(identity, user_id)
        async with door.read() as tx:
            return [_channel(row) for row in await audience.channels(tx, user_id)]

    @put("/api/alerts/{user_id:uuid}/channels/{channel:str}", caller=Caller.USER)
    async def set_channel(
        request: HttpRequest,
        identity: Who,
        user_id: FromPath[UUID],
        channel: FromPath[Channel],
        data: JSONBody[ChannelBody],
    ) -> ChannelView:
        """Set where a channel goes. A webhook is enabled at once, an address when its reader has confirmed it."""
        own(identity, user_id)
        actor, target = _actor(request, identity), data.target
        return _channel(await door.run(lambda tx: alerts.set_channel(actor, user_id, channel, target, tx)))

    @delete("/api/alerts/{user_id:uuid}/channels/{channel:str}", caller=Caller.USER)
    async def remove_channel(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], channel: FromPath[Channel]
    ) -> None:
        """Remove a channel."""
        own(identity, user_id)
        actor = _actor(request, identity)
        await door.run(lambda tx: alerts.remove_channel(actor, user_id, channel, tx))

    @post("/api/alerts/{user_id:uuid}/channels/{channel:str}/confirmation", caller=Caller.USER, status_code=200)
    async def ask_again(identity: Who, user_id: FromPath[UUID], channel: FromPath[Channel]) -> ChannelView:
        """Send the mail that confirms an address once more; five a day at most."""
        own(identity, user_id)
        return _channel(await door.run(lambda tx: alerts.ask_again(user_id, channel, tx)))

    return [list_channels, set_channel, remove_channel, ask_again]


def _link_routes(alerts: Alerts, door: Door) -> list[HTTPRouteHandler]:
    @get("/links/confirm-email", caller=Caller.LINK, media_type=MediaType.HTML)
    async def show_link(token: Token) -> Response[str]:
        """Show the page whose button confirms a mail address."""
        alerts.check_link(token)
        button = (
            f'<form method="post" action="?token={html.escape(token)}"><button>Confirm this address</button></form>'
        )
        return _page("Receive Openbell's alerts at this address?", button)

    @post("/links/confirm-email", caller=Caller.LINK, media_type=MediaType.HTML, status_code=200)
    async def confirm(token: Token) -> Response[str]:
        """Confirm a mail address: its user's alerts go there from now on. Again changes nothing."""
        await door.run(lambda tx: alerts.confirm(token, tx))
        return _page("Confirmed", "<p>Openbell's alerts come to this address from now on.</p>")

    return [show_link, confirm]


def _page(title: str, body: str) -> Response[str]:
    text = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>{body}</html>\n'
    )
    headers = {"cache-control": "no-store", "referrer-policy": "no-referrer"}  # the address of the page is the secret
    return Response(text, media_type=MediaType.HTML, headers=headers)


def _rule_routes(alerts: Alerts, audience: AudienceStore, door: Door) -> list[HTTPRouteHandler]:
    @get("/api/alerts/{user_id:uuid}/rules", caller=Caller.USER)
    async def list_rules(identity: Who, user_id: FromPath[UUID]) -> list[RuleView]:
        """Return the user's rules; the first is the watchlist's, which the user's settings decide."""
        own(identity, user_id)
        async with door.read() as tx:
            watchlist, enabled = await audience.watchlist_rule(tx, user_id)
            rows = await audience.rules(tx, user_id)
        first = RuleView(
            id=watchlist.rule_id,
            kind="watchlist",
            name=watchlist.name,
            symbols=[],
            min_score=watchlist.min_score,
            min_premium_usd=str(watchlist.min_premium_usd),
            enabled=enabled,
        )
        return [first, *(_rule(row) for row in rows)]

    @post("/api/alerts/{user_id:uuid}/rules", caller=Caller.USER)
    async def add_rule(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[RuleBody]
    ) -> Response[bytes]:
        """Add a rule. An Idempotency-Key makes a repetition harmless."""
        own(identity, user_id)
        actor = _actor(request, identity)
        rule = NewRule(data.name, tuple(data.symbols), data.min_score, data.min_premium_usd)

        async def add(tx: Any) -> Done[RuleView]:
            done = await alerts.add_rule(actor, user_id, rule, tx)
            return Done(_rule(done.value), done.events)

        return await answer_once(request, door, add, status_code=201)

    @delete("/api/alerts/{user_id:uuid}/rules/{rule_id:uuid}", caller=Caller.USER)
    async def remove_rule(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], rule_id: FromPath[UUID]
    ) -> None:
        """Remove a rule; its alerts stay."""
        own(identity, user_id)
        actor = _actor(request, identity)
        await door.run(lambda tx: alerts.remove_rule(actor, user_id, rule_id, tx))

    return [list_rules, add_rule, remove_rule]


def _actor(request: HttpRequest, identity: Identity) -> Actor:
    return Actor(str(identity.user_id), exchange_of(request.scope).request_id)


def _alert(row: Row, deliveries: list[Row]) -> AlertView:
    return AlertView(
        id=row["alert_id"],
        rule_id=row["rule_id"],
        rule=row["rule_name"],
        symbol=row["symbol"],
        session=row["session"].isoformat(),
        title=row["title"],
        simulated=row["simulated"],
        note=SIMULATED_NOTE if row["simulated"] else None,
        top_score=row["top_score"],
        contract_count=row["contract_count"],
        premium_usd=str(row["premium_usd"]),
        contracts=row["best"],
        source=row["source"],
        delay_s=row["delay_s"],
        as_of=row["as_of"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        opened_at=row["opened_at"],
        notifications=row["notifications"],
        deliveries=[
            DeliveryView(
                id=one["id"],
                channel=one["channel"],
                status=one["status"],
                attempts=one["attempts"],
                created_at=one["created_at"],
                settled_at=one["settled_at"],
                next_attempt_at=one["due_at"] if one["status"] == "pending" else None,
                detail=one["last_error"],
            )
            for one in deliveries
        ],
    )


def _channel(row: Row) -> ChannelView:
    return ChannelView(
        row["channel"],
        masked(row["channel"], row["target"]),
        row["enabled"],
        row["confirmed_at"] is not None,
        row["reason"],
        row["updated_at"],
    )


def _rule(row: Row) -> RuleView:
    return RuleView(
        id=row["rule_id"],
        kind="own",
        name=row["name"],
        symbols=row["symbols"],
        min_score=row["min_score"],
        min_premium_usd=str(row["min_premium_usd"]),
        enabled=row["enabled"],
    )
