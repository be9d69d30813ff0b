"""Alpaca: equities, options and crypto by its Trading API (REST, version 2) and its stream of trade updates.

What would surprise you:

- What an execution was, only the account's activities tell; an order knows its sums. So a look-up asks for both.
- Orders are listed by when they were sent, not by when they changed. One that is good till canceled works for 90 days
  at most, so `changes` lists these; an order that is older than that is asked for by its id when it was filled.
- Activities other than fills are dated, not timed, and posted up to days later: `changes` looks a week further back
  for them, and their ids keep them from counting twice.
- A replacement is a new order of Alpaca's, under the new order's id; its quantity is what the new order asks for.
"""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from services.broker.adapters.alpaca.activities import (
    OTHERS,
    executions_of,
    facts_of,
    foreign_fill,
)
from services.broker.adapters.alpaca.line import Line
from services.broker.adapters.alpaca.reading import (
    any_filled,
    balance_of,
    body_of,
    change_of,
    held_of,
    kind_of,
    legs_of,
    moment,
    our_id,
    our_name,
    path_of_rules,
    readable,
    rules_of,
    snapshot,
)
from services.broker.adapters.alpaca.updates import Updates
from services.broker.adapters.alpaca.wire import Declined, Wire
from services.broker.adapters.guard import OPEN_S, Guard
from services.broker.domain.checks import Capabilities, TradeRules
from services.broker.domain.instruments import Instrument
from services.broker.domain.lifecycle import filled
from services.broker.domain.orders import Order, Report
from services.broker.domain.positions import Fill
from services.broker.ports import Account, Balance, Changes, Held, Update, Venue, VenueRefused
from shared.clock import Clock, utc_now
from shared.errors import Transient
from shared.work import OutcomeUnknown

Json = Any

PAPER: Final = "https://paper-api.alpaca.markets"
LIVE: Final = "https://api.alpaca.markets"
CAPABILITIES: Final = Capabilities(
    venue="alpaca",
    types=frozenset({"market", "limit", "stop", "stop_limit", "trailing_stop"}),
    times={
        "equity": frozenset({"day", "gtc", "ioc", "fok", "opg", "cls"}),
        "option": frozenset({"day"}),
        "crypto": frozenset({"gtc", "ioc"}),
    },
    classes=frozenset({"simple", "multi_leg"}),
    notional=frozenset({"equity", "crypto"}),
    extended_hours=True,
    most_legs=4,
)

_ORDERS: Final = 500
_ACTIVITIES: Final = 100
_WORKS_FOR: Final = timedelta(days=91)
_POSTED_WITHIN: Final = timedelta(days=7)
_SKEW: Final = timedelta(minutes=5)
"""How far the venue's clock, and its listing behind its books, may be off."""
_TICK: Final = timedelta(milliseconds=1)
_MISSING: Final = 404
_KEY: Final = re.compile(r"[!-~]{1,256}")
_SEEN: Final = re.compile(r"client[ _-]?order[ _-]?id must be unique", re.IGNORECASE)
"""Words, because the code that comes with them (40010001) is that of every malformed order."""


class Alpaca:
    """Opens accounts. The address follows from the account's mode: `live` exactly is live, anything else is paper."""

    name = "alpaca"
    capabilities = CAPABILITIES
    secrets = frozenset({"key_id", "secret_key"})

    def __init__(
        self,
        *,
        paper: str = PAPER,
        live: str = LIVE,
        timeout_s: float = 10.0,
        ping_s: float = 20.0,
        clock: Clock = utc_now,
        open_s: float = OPEN_S,
    ) -> None:
        self._paper = paper
        self._live = live
        self._guards = {mode: Guard(f"alpaca-{mode}", open_s=open_s) for mode in ("paper", "live")}
        self._timeout_s = timeout_s
        self._ping_s = ping_s
        self._clock = clock

    def open(self, account: Account, secrets: Mapping[str, str]) -> Venue:
        """Return an account's venue. Raises VenueRefused for keys that no key can be."""
        keys = [secrets.get(name, "") for name in ("key_id", "secret_key")]
        if not all(_KEY.fullmatch(key) for key in keys):
            raise VenueRefused("Alpaca's credentials are key_id and secret_key, both of printable characters")
        mode = "live" if account.mode == "live" else "paper"
        base, guard = self._live if mode == "live" else self._paper, self._guards[mode]
        wire = Wire(base, *keys, timeout_s=self._timeout_s, clock=self._clock, guard=guard)
        return AlpacaVenue(wire, Line(base, *keys, ping_s=self._ping_s))


class AlpacaVenue:
    """One account at Alpaca."""

    capabilities = CAPABILITIES
    knows_ids = True

    def __init__(self, wire: Wire, line: Line) -> None:
        self._wire = wire
        self._line = line
        self._updates = Updates()

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        """Return the steps of instruments by their key; what is left out Alpaca does not know."""
        found: dict[str, TradeRules] = {}
        for one in instruments:
            told = await self._found(path_of_rules(one))
            if told is not None:
                with readable("asset"):
                    found[one.key] = rules_of(one, told)
        return found

    async def submit(self, order: Order) -> Report:
        """Place an order under its id."""
        if order.terms.order_class not in self.capabilities.classes:
            return Report("rejected", reason=f"{order.terms.order_class} orders are not sent to Alpaca")
        try:
            told = await self._wire.write("POST", "/v2/orders", body_of(order))
        except Declined as error:
            if _SEEN.search(error.reason):
                raise OutcomeUnknown("Alpaca has seen the order's id") from None
            return Report("rejected", reason=error.reason)
        try:
            with readable("order"):
                report = snapshot(told, self._updates.places(told, order))
        except Transient as error:
            raise OutcomeUnknown(error.message) from error
        if report.kind in {"filled", "rejected"}:
            return report
        return replace(report, kind="accepted")

    async def cancel(self, order: Order) -> Report | None:
        """Cancel a working order."""
        name = await self._name_of(order)
        if name is None:
            return Report("cancel_rejected", reason="Alpaca does not know the order")
        try:
            await self._wire.write("DELETE", f"/v2/orders/{name}")
        except Declined as error:
            return await self._uncanceled(order, error.reason)
        return None

    async def replace(self, order: Order, by: Order) -> Report | None:
        """Put `by` in the place of a working order.

        Refused while the old one has fills that `order` lacks: `by` was sized without them, and would fill too much.
        """
        change = change_of(order, by)
        if change is None:
            return Report("replace_rejected", reason="Alpaca replaces quantity, prices and time in force, nothing else")
        known = await self._by_client_id(order.id)
        if known is None:
            return Report("replace_rejected", reason="Alpaca does not know the order")
        with readable("order"):
            name, done = str(known["id"]), Decimal(str(known["filled_qty"]))
        if done > filled(order):
            return Report("replace_rejected", reason="FILLED_MEANWHILE: more of it is filled: ask again")
        try:
            told = await self._wire.write("PATCH", f"/v2/orders/{name}", change)
        except Declined as error:
            if _SEEN.search(error.reason):
                raise OutcomeUnknown("Alpaca has seen the new order's id") from None
            return Report("replace_rejected", reason=error.reason)
        try:
            with readable("order"):
                self._updates.places(told, by)
        except Transient as error:
            raise OutcomeUnknown(error.message) from error
        return None

    async def look_up(self, order: Order) -> Report:
        """Return how the order stands, all its executions in it."""
        told = await self._by_client_id(order.id)
        if told is None:
            return Report("not_found", looked_up=True)
        with readable("order"):
            places = self._updates.places(told, order)
            fills = await self._fills(moment(told["submitted_at"]) - _SKEW) if any_filled(told) else ()
            report = snapshot(told, places)
            executions = executions_of(fills, places)
        replaced_by = None
        if report.kind == "replaced" and order.replaced_by is None:
            replaced_by = await self._our_id_of(told.get("replaced_by"))
        return replace(report, executions=executions, looked_up=True, replaced_by=replaced_by)

    async def changes(self, since: datetime) -> Changes:
        """Return what happened since then, all pages of it."""
        since -= _SKEW
        listed = await self._orders(since - _WORKS_FOR)
        with readable("order"):
            told = {one["id"]: one for one in listed if kind_of(one) == "accepted" or moment(one["updated_at"]) > since}
            traded = [one for one in told.values() if our_id(one) and any_filled(one)]
            start = min([since, *(moment(one["submitted_at"]) - _SKEW for one in traded)])
        fills = await self._fills(start)
        whose = {leg["id"]: one for one in listed for leg in legs_of(one)}
        with readable("fill"):
            for name in {str(one["order_id"]) for one in fills if moment(one["transaction_time"]) > since}:
                if name not in whose and (asked := await self._found(f"/v2/orders/{name}", {"nested": "true"})):
                    whose[name] = asked
                if name in whose:  # one that was filled has changed, whatever it says of itself
                    told[whose[name]["id"]] = whose[name]
            updates = [self._update(one, mine, fills) for one in told.values() if (mine := our_id(one))]
            facts = [*self._foreign(fills, since, whose)]
        others = await self._pages(
            {"activity_types": OTHERS, "after": (since - _POSTED_WITHIN).isoformat(), "direction": "asc"}
        )
        with readable("activity"):
            return Changes(updates, (*facts, *facts_of(others)))

    async def positions(self) -> Sequence[Held]:
        """Return all that is held."""
        told = await self._wire.read("/v2/positions")
        with readable("position"):
            return [held_of(one) for one in told]

    async def balance(self) -> Balance:
        """Return the money."""
        told = await self._wire.read("/v2/account")
        with readable("account"):
            return balance_of(told)

    @asynccontextmanager
    async def stream(self) -> AsyncGenerator[AsyncIterator[Update]]:
        """Listen: inside the block nothing that happens is missed."""
        async with self._line.open() as frames, aclosing(self._told(frames)) as updates:
            yield updates

    async def close(self) -> None:
        """Give up connections."""
        await self._wire.close()

    # What several of these need

    async def _told(self, frames: AsyncIterator[Json]) -> AsyncGenerator[Update]:
        async for frame in frames:
            with readable("frame"):
                update = self._updates.read(frame)
            if update is not None:
                yield update

    def _update(self, told: Json, mine: UUID, fills: Sequence[Json]) -> Update:
        places = self._updates.places(told)
        report = snapshot(told, places)
        return Update(mine, replace(report, executions=executions_of(fills, places), looked_up=True))

    @staticmethod
    def _foreign(fills: Sequence[Json], since: datetime, whose: Mapping[str, Json]) -> list[Fill]:
        found: list[Fill] = []
        for one in fills:
            told = whose.get(one["order_id"])
            if told is None or our_id(told) is not None or moment(one["transaction_time"]) <= since:
                continue
            found += foreign_fill(one, next(leg for leg in legs_of(told) if leg["id"] == one["order_id"]))
        return found

    async def _found(self, path: str, params: Mapping[str, str] | None = None) -> Json | None:
        try:
            return await self._wire.read(path, params)
        except Declined as error:
            if error.answered == _MISSING:
                return None
            raise

    async def _by_client_id(self, order_id: UUID) -> Json | None:
        path = "/v2/orders:by_client_order_id"
        return await self._found(path, {"client_order_id": our_name(order_id), "nested": "true"})

    async def _name_of(self, order: Order) -> str | None:
        """Return Alpaca's own id of an order; None when it has none."""
        if order.venue_order_id is not None:
            return order.venue_order_id
        told = await self._by_client_id(order.id)
        with readable("order"):
            return None if told is None else str(told["id"])

    async def _our_id_of(self, name: str | None) -> UUID | None:
        told = None if name is None else await self._found(f"/v2/orders/{name}")
        with readable("order"):
            return None if told is None else our_id(told)

    async def _uncanceled(self, order: Order, reason: str) -> Report | None:
        """Return how an order has ended that is not to be canceled; None when it is being canceled already."""
        told = await self._by_client_id(order.id)
        with readable("order"):
            if told is not None and told["status"] == "pending_cancel":
                return None
        report = await self.look_up(order)
        return Report("cancel_rejected", reason=reason) if report.kind in {"accepted", "not_found"} else report

    async def _orders(self, after: datetime) -> Sequence[Json]:
        """Return all orders that were sent since then, oldest first, the legs in them."""
        found: dict[str, Json] = {}
        while True:
            params = {"status": "all", "direction": "asc", "nested": "true", "limit": str(_ORDERS)}
            page = await self._wire.read("/v2/orders", {**params, "after": after.isoformat()})
            with readable("order"):
                before = len(found)
                found |= {one["id"]: one for one in page}
                if len(page) < _ORDERS:
                    return list(found.values())
                # The bound is exclusive, and several may have been sent at the same moment.
                after = moment(page[-1]["submitted_at"]) - _TICK
            if len(found) == before:
                raise Transient("Alpaca's list of orders does not go on")

    async def _fills(self, after: datetime) -> Sequence[Json]:
        return await self._pages({"activity_types": "FILL", "after": after.isoformat(), "direction": "asc"})

    async def _pages(self, params: Mapping[str, str]) -> Sequence[Json]:
        """Return all activities, oldest first."""
        found: list[Json] = []
        token: dict[str, str] = {}
        while True:
            page = await self._wire.read("/v2/account/activities", {**params, "page_size": str(_ACTIVITIES), **token})
            with readable("activity"):
                found += page
                if len(page) < _ACTIVITIES:
                    return found
                if token == {"page_token": page[-1]["id"]}:
                    raise Transient("Alpaca's list of activities does not go on")
                token = {"page_token": page[-1]["id"]}
