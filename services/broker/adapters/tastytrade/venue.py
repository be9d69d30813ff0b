"""One account at tastytrade.

What would surprise you: a replacement changes the price, the type and the time in force, and nothing else; it is an
order of its own for what is left of the old one, which is told as cancelled.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.broker.adapters.guard import OPEN_S, Guard
from services.broker.adapters.tastytrade import history, shapes
from services.broker.adapters.tastytrade.stream import BEAT_S, SILENT_S, Streamer, listening
from services.broker.adapters.tastytrade.wire import PER_PAGE, Declined, Json, Wire, understood
from services.broker.domain.checks import Capabilities, TradeRules
from services.broker.domain.instruments import Equity, Instrument, Option
from services.broker.domain.orders import ZERO, Order, Report
from services.broker.ports import Account, Balance, Changes, Held, Update, VenueRefused
from shared.clock import Clock


@dataclass(frozen=True, slots=True)
class Hosts:
    """Where an environment answers."""

    api: str
    streamer: str


LIVE: Final = Hosts("https://api.tastyworks.com", "wss://streamer.tastyworks.com")
PAPER: Final = Hosts("https://api.cert.tastyworks.com", "wss://streamer.cert.tastyworks.com")

CAPABILITIES: Final = Capabilities(
    venue="tastytrade",
    types=frozenset(shapes.TYPES),
    times={"equity": frozenset(shapes.TIMES), "option": frozenset(shapes.TIMES)},
    classes=frozenset({"simple", "multi_leg"}),
    extended_hours=True,
    most_legs=4,
)
AT_ONCE: Final = 50
"""Symbols in one request."""
BOOKED_LATE: Final = timedelta(days=4)
"""An expiry of a Friday is booked after the weekend, and dated back."""
SKEW: Final = timedelta(days=1)
"""The venue's day need not be ours."""

_NOT_FOUND: Final = 404
_TIME_ORDERED: Final = 7


class Tastytrade:
    """Opens accounts. Only an account whose mode is exactly "live" goes where real money is."""

    name = "tastytrade"
    capabilities = CAPABILITIES
    secrets = frozenset({"refresh_token", "client_secret"})

    def __init__(
        self,
        clock: Clock,
        *,
        live: Hosts = LIVE,
        paper: Hosts = PAPER,
        timeout_s: float = 15.0,
        beat_s: float = BEAT_S,
        silent_s: float = SILENT_S,
        open_s: float = OPEN_S,
    ) -> None:
        self._clock = clock
        self._guards = {mode: Guard(f"tastytrade-{mode}", open_s=open_s) for mode in ("paper", "live")}
        self._live, self._paper = live, paper
        self._timeout_s, self._beat_s, self._silent_s = timeout_s, beat_s, silent_s

    def open(self, account: Account, secrets: Mapping[str, str]) -> "TastytradeVenue":
        """Return an account's venue. Raises VenueRefused where a secret or the account number is missing."""
        missing = sorted(name for name in self.secrets if not secrets.get(name))
        if missing:
            raise VenueRefused(f"tastytrade needs {' and '.join(missing)}")
        if not (account.reference.isascii() and account.reference.isalnum()):
            raise VenueRefused("tastytrade needs the account number, letters and digits")
        mode = "live" if account.mode == "live" else "paper"
        hosts = self._live if mode == "live" else self._paper
        wire = Wire(
            hosts.api,
            secrets["refresh_token"],
            secrets["client_secret"],
            clock=self._clock,
            timeout_s=self._timeout_s,
            guard=self._guards[mode],
        )
        streamer = Streamer(hosts.streamer, account.reference, self._beat_s, self._silent_s)
        return TastytradeVenue(account, wire, streamer, self._clock)


class TastytradeVenue:
    """One account."""

    capabilities = CAPABILITIES
    knows_ids = False

    def __init__(self, account: Account, wire: Wire, streamer: Streamer, clock: Clock) -> None:
        self._id = account.id
        self._path = f"/accounts/{account.reference}"
        self._wire = wire
        self._streamer = streamer
        self._clock = clock

    # Instruments

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        """Return the steps of instruments by their key; options have those of their underlying."""
        with understood():
            return await self._rules(instruments)

    async def _rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        options = [of for of in instruments if isinstance(of, Option)]
        equities = {of for of in instruments if isinstance(of, Equity)}
        under = {Equity(of.underlying) for of in options}
        known = await self._known("equities", equities | under)
        contracts = await self._known("equity-options", set(options))
        found: dict[str, TradeRules] = {}
        for of in equities:
            if (told := known.get(shapes.symbol_of(of))) is not None and told.get("is-index") is not True:
                found[of.key] = shapes.rules_of(told, told.get("tick-sizes") or ())
        for of in options:
            told, base = (
                contracts.get(shapes.symbol_of(of)),
                known.get(shapes.symbol_of(Equity(of.underlying)), {}),
            )
            if told is not None:
                found[of.key] = shapes.rules_of(told, base.get("option-tick-sizes") or ())
        return found

    async def _known(self, kind: str, asked: Iterable[Instrument]) -> dict[str, Json]:
        symbols = sorted({shapes.symbol_of(of) for of in asked})
        found: dict[str, Json] = {}
        for start in range(0, len(symbols), AT_ONCE):
            page = {"symbol[]": symbols[start : start + AT_ONCE], "per-page": PER_PAGE}
            async for one in self._wire.items(f"/instruments/{kind}", page):
                found[str(one["symbol"])] = one
        return found

    # Orders

    async def submit(self, order: Order) -> Report:
        """Place an order."""
        actions = await self._actions(order)
        try:
            answer = await self._wire.write("POST", f"{self._path}/orders", shapes.body_of(order, actions))
        except Declined as refusal:
            if refusal.answer == _NOT_FOUND:
                raise VenueRefused("tastytrade does not know the account") from None
            return Report("rejected", reason=refusal.message)
        with understood(writes=True):
            return shapes.report_of(answer["data"]["order"])

    async def cancel(self, order: Order) -> Report | None:
        """Cancel a working order."""
        with understood():
            told = await self._one(order)
            if told is None:
                return Report("cancel_rejected", reason="tastytrade does not know the order")
            if shapes.is_over(told):
                return shapes.report_of(told, looked_up=True)
            try:
                answer = await self._wire.write("DELETE", f"{self._path}/orders/{told['id']}")
            except Declined as refusal:
                now = await self._by_number(str(told["id"]))
                if now is not None and shapes.is_over(now):
                    return shapes.report_of(now, looked_up=True)
                return Report("cancel_rejected", reason=refusal.message)
        with understood(writes=True):
            after = answer["data"]
            return shapes.report_of(after) if shapes.is_over(after) else None

    async def replace(self, order: Order, by: Order) -> Report | None:
        """Put `by` in the place of a working order. Its quantity is what is left of that."""
        with understood():
            told = await self._one(order)
            if told is None:
                return Report("replace_rejected", reason="tastytrade does not know the order")
            if (reason := _why_not(told, order, by)) is not None:
                return replace(shapes.report_of(told), kind="replace_rejected", reason=reason)
            path = f"{self._path}/orders/{told['id']}"
        try:
            await self._wire.write("PUT", path, shapes.conditions_of(by))
        except Declined as refusal:
            return Report("replace_rejected", reason=refusal.message)
        return None

    async def look_up(self, order: Order) -> Report:
        """Return how the order stands. Several orders under one id, which must not be, are told as one."""
        with understood():
            found = await self._find(order)
            reports = [shapes.report_of(told, looked_up=True) for told in found]
        if not found:
            return Report("not_found", looked_up=True)
        working = [one for told, one in zip(found, reports, strict=True) if not shapes.is_over(told)]
        main = (working or reports)[0]
        executions = tuple(execution for one in reports for execution in one.executions)
        return replace(main, executions=executions)

    async def _actions(self, order: Order) -> list[str]:
        """Return what each leg does: where the order leaves it open, it closes what is held the other way."""
        held: dict[str, Decimal] = {}
        if any(leg.opens is None for leg in order.terms.legs):
            held = {one.instrument.key: one.quantity for one in await self.positions()}
        actions: list[str] = []
        for leg in order.terms.legs:
            other_way = held.get(leg.instrument.key, ZERO) * (1 if leg.side == "buy" else -1) < 0
            opens = not other_way if leg.opens is None else leg.opens
            actions.append(f"{leg.side.capitalize()} to {'Open' if opens else 'Close'}")
        return actions

    async def _one(self, order: Order) -> Json | None:
        found = await self._find(order)
        working = [told for told in found if not shapes.is_over(told)]
        return next(iter(working or found), None)

    async def _find(self, order: Order) -> list[Json]:
        """Return the venue's orders under an order's id."""
        if order.venue_order_id is not None:
            told = await self._by_number(order.venue_order_id)
            if told is not None:
                return [told]
        found: dict[str, Json] = {}
        async for told in self._orders(_made_on(order.id, self._clock())):
            if shapes.is_under(told, order.id):
                found[str(told["id"])] = told
        return list(found.values())

    async def _by_number(self, number: str) -> Json | None:
        if not (number.isascii() and number.isdigit()):
            return None
        try:
            return (await self._wire.read(f"{self._path}/orders/{number}"))["data"]
        except Declined as refusal:
            if refusal.answer == _NOT_FOUND:
                return None
            raise

    async def _orders(self, since: datetime | None) -> AsyncIterator[Json]:
        """Yield the orders placed since a day, all where none is known, then those that work or changed today."""
        window: dict[str, str | int] = {"per-page": PER_PAGE, "sort": "Desc"}
        if since is not None:
            window["start-date"] = since.date().isoformat()
        async for told in self._wire.items(f"{self._path}/orders", window):
            yield told
        async for told in self._wire.items(f"{self._path}/orders/live"):
            yield told

    # What happened, what is held

    async def changes(self, since: datetime) -> Changes:
        """Return what happened since then.

        An order placed earlier that ended without a fill, and not today, is not among them: a look-up tells.
        """
        with understood():
            return await self._changes(since.astimezone(UTC))

    async def _changes(self, asked: datetime) -> Changes:
        found = {str(told["id"]): told async for told in self._orders(asked - SKEW)}
        window = {"per-page": PER_PAGE, "sort": "Desc", "start-date": (asked - BOOKED_LATE).date().isoformat()}
        rows = {str(row["id"]): row async for row in self._wire.items(f"{self._path}/transactions", window)}
        for number in sorted(history.order_ids(rows.values()) - found.keys()):
            if (told := await self._by_number(number)) is not None:
                found[number] = told
        ids = {number: order_id for number, told in found.items() if (order_id := shapes.id_of(told)) is not None}
        updates = [Update(order_id, _told(found[number], ids)) for number, order_id in ids.items()]
        return Changes(updates, history.facts_of(rows.values(), ids.keys(), self._id))

    async def positions(self) -> Sequence[Held]:
        """Return all that is held of what we know; futures are left out."""
        answer = await self._wire.read(f"{self._path}/positions")
        with understood():
            found = [shapes.held_of(told) for told in answer["data"]["items"]]
        return [one for one in found if one is not None]

    async def balance(self) -> Balance:
        """Return the money. Of the buying powers of shares and of options the smaller one."""
        told = (await self._wire.read(f"{self._path}/balances"))["data"]
        with understood():
            power = min(shapes.number(told["equity-buying-power"]), shapes.number(told["derivative-buying-power"]))
            return Balance(shapes.number(told["cash-balance"]), power, str(told.get("currency") or "USD"))

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[Update]]:
        """Listen."""
        return listening(self._streamer, self._wire)

    async def close(self) -> None:
        """Give up connections."""
        await self._wire.close()


def _told(told: Json, ids: Mapping[str, UUID]) -> Report:
    """Return an order's report, with the order of ours in its place where there is one."""
    report = shapes.report_of(told, looked_up=True)
    by = ids.get(str(told.get("replacing-order-id")))
    return replace(report, replaced_by=by) if report.kind == "replaced" else report


def _why_not(told: Json, order: Order, by: Order) -> str | None:
    """Return why the venue would not make of an order what is asked for."""
    if shapes.is_over(told):
        return f"the order is {str(told['status']).lower()}"
    if by.terms.legs != order.terms.legs:
        return "tastytrade keeps the legs of an order: cancel it and place another"
    left = shapes.remaining(told)
    wanted = [(by.terms.quantity or ZERO) * leg.ratio for leg in by.terms.legs]
    if left != wanted:
        units = min(one / leg.ratio for one, leg in zip(left, by.terms.legs, strict=True))
        return f"tastytrade keeps the quantity, {units:f} is left: ask for that, or cancel it and place another"
    return None


def _made_on(order_id: UUID, now: datetime) -> datetime | None:
    """Return a day before which an order cannot have been placed; None where its id does not tell."""
    if order_id.version != _TIME_ORDERED:
        return None
    made = datetime.fromtimestamp((order_id.int >> 80) / 1000, UTC)
    return min(made, now) - SKEW
