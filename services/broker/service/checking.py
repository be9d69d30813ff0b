"""Whether an order may go out now: gathers what the rules want to know, and asks them.

The steps of instruments are asked of the venue and kept for an hour; money is what the venue told last, less what our
orders have taken since.
"""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final, cast
from zoneinfo import ZoneInfo

from services.broker.domain.checks import Capabilities, Refusal, TradeRules, asset_class, check
from services.broker.domain.instruments import Crypto, Instrument
from services.broker.domain.orders import ZERO, Order, Terms
from services.broker.domain.risk import Limits, Mode, Quote, Recent, Session, Snapshot, assess, mode, needed_cash
from services.broker.domain.shapes import load_terms
from services.broker.ports import Venue
from services.broker.store.accounts import ALL, account_of
from services.broker.store.orders import Stored
from services.broker.store.seen import seen
from shared.clock import Clock
from shared.db import Row, Tx
from shared.sessions import Sessions

NEW_YORK: Final = ZoneInfo("America/New_York")
BEFORE_OPEN: Final = timedelta(hours=5, minutes=30)
AFTER_CLOSE: Final = timedelta(hours=4)
KEEP_RULES_S: Final = 3600.0
KEEP_UNKNOWN_S: Final = 30.0
MOST_RULES: Final = 50_000
TOO_LATE: Final = timedelta(seconds=60)
"""An order that could not be sent so long is given up: the market is another one."""
LATE: Final = Refusal("TOO_LATE", "it could not be sent for a minute: place it anew")
Calendar = Callable[[], Awaitable[Sessions]]
"""Returns the exchange's sessions; they take a while the first time."""
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Deployment:
    """What this deployment allows. `trading` is live only where it reads exactly "live"."""

    trading: str
    limits: Limits
    entitlement: str | None  # the plan's, None where nobody needs one


Place = tuple[str, Mode]
"""A venue and a mode: paper and live of one venue may have other rules."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the venue told for an order. `held` is what one that closes a position finds there; None for any other."""

    venue: Venue
    rules: Mapping[str, TradeRules]
    quotes: Mapping[str, Quote]
    held: Decimal | None


class Rulebook:
    """The steps of instruments, as venues tell them; of so many (`most`) as were asked for last."""

    def __init__(self, most: int = MOST_RULES) -> None:
        self._most = most
        self._known: dict[tuple[Place, str], tuple[float, TradeRules | None]] = {}

    async def of(self, place: Place, venue: Venue, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        """Return the steps by instrument; those that the venue does not know are left out."""
        now = time.monotonic()
        wanted = [one for one in instruments if not self._holds(place, one.key, now)]
        told = await venue.rules(wanted) if wanted else {}
        asked = {one.key for one in wanted}
        found = dict[str, TradeRules | None]()
        for key in {one.key for one in instruments}:
            before = self._known.pop((place, key), None)
            if key in asked or before is None:
                before = now, told.get(key)
            self._known[place, key] = before  # at the end: the first of the dict is what nobody asked for longest
            found[key] = before[1]
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]
        return {key: rules for key, rules in found.items() if rules is not None}

    def _holds(self, place: Place, key: str, now: float) -> bool:
        known = self._known.get((place, key))
        return known is not None and now - known[0] < (KEEP_UNKNOWN_S if known[1] is None else KEEP_RULES_S)


class Checking:
    """Judges orders right before they are sent."""

    def __init__(
        self,
        deployment: Deployment,
        *,
        calendar: Calendar,
        clock: Clock,
    ) -> None:
        self._deployment = deployment
        self._calendar = calendar
        self._clock = clock

    async def judge(
        self,
        tx: Tx,
        row: Row,
        order: Order,
        told: Told,
        *,
        exits: bool = False,
    ) -> tuple[tuple[Refusal, ...], Decimal]:
        """Return all that stands against sending an order of the account's (`row`) now, and what it would take.

        `exits`: it is an exit of a bracket or an OCO.
        """
        account, now = account_of(row), self._clock()
        allowed = mode(account.mode, self._deployment.trading)
        if isinstance(allowed, Refusal):
            return (allowed,), ZERO
        terms = order.terms
        if wrong := check(terms, told.venue.capabilities, told.rules, now.astimezone(NEW_YORK).date()):
            return wrong, ZERO
        limits = limits_of(row, self._deployment.limits)
        seen = replace(await self._snapshot(tx, row, order, limits, told.quotes), exits=exits)
        refusals = assess(terms, limits, seen)
        return refusals, ZERO if refusals else needed_cash(terms, seen)

    async def foresee(self, tx: Tx, row: Row, stored: Stored, capabilities: Capabilities) -> tuple[Refusal, ...]:
        """Return what stands already against an order that closes a position, its other orders left aside.

        They are canceled for it, so it is better known before. What only the venue can tell is judged later, quotes
        that it has among it.
        """
        if late(stored, self._clock()):
            return (LATE,)
        allowed = mode(account_of(row).mode, self._deployment.trading)
        if isinstance(allowed, Refusal):
            return (allowed,)
        limits = limits_of(row, self._deployment.limits)
        terms = stored.order.terms
        seen = await self._snapshot(tx, row, stored.order, limits, {})
        refusals = assess(terms, limits, replace(seen, buying={}, selling={}))
        asked_later = all(asset_class(leg.instrument) in capabilities.quotes for leg in terms.legs)
        return tuple(one for one in refusals if not (asked_later and one.code == "NO_QUOTE"))

    async def _snapshot(self, tx: Tx, row: Row, order: Order, limits: Limits, told: Mapping[str, Quote]) -> Snapshot:
        account, now = account_of(row), self._clock()
        traded = [leg.instrument for leg in order.terms.legs]
        valuing = [one.valued_by for one in traded if isinstance(one, Crypto) and one.valued_by]
        symbols = [*(one.key for one in traded), *valuing]
        told_at = row["balance_at"]
        found = await seen(
            tx,
            order_id=order.id,
            account_id=account.id,
            user_id=account.user_id,
            symbols=symbols,
            plan=self._deployment.entitlement,
            told_at=told_at,
            minute=now - max(_MINUTE, limits.duplicate_window),
            window=now - limits.duplicate_window,
            most=limits.max_orders_a_minute + 1,
            now=now,
        )
        power = cast("Decimal | None", row["buying_power"])
        taken: Decimal = ZERO if told_at is None else found["reserved"]
        quotes = {key: _quote(one) for key, one in found["quotes"].items()} | dict(told)
        replaced = str(order.replaces)
        buying, selling = _working([one for one in found["working"] if one["id"] != replaced], quotes)
        return Snapshot(
            now=now,
            buying_power=max((power or ZERO) - taken, ZERO),
            session=session_at(await self._calendar(), now),
            quotes=quotes,
            held={key: Decimal(quantity) for key, quantity in found["held"].items()},
            buying=buying,
            selling=selling,
            before=found["before"],
            recent=tuple(_recent(one) for one in found["recent"]),
            replaces=order.replaces is not None,
            entitled=found["entitled"],
            halted_user=str(account.user_id) in found["halts"],
            halted_all=ALL in found["halts"],
        )


def late(stored: Stored, now: datetime) -> bool:
    """Whether an order was asked for so long ago that it goes out no more."""
    asked_at: datetime = stored.row["created_at"]
    return now - asked_at > TOO_LATE


def limits_of(row: Row, standard: Limits) -> Limits:
    """Return an account's limits: its own are never wider than the deployment's."""
    own: Mapping[str, Any] = row["limits"]
    return Limits(
        max_order_value=min(standard.max_order_value, Decimal(own.get("max_order_value", "Infinity"))),
        max_position_value=min(standard.max_position_value, Decimal(own.get("max_position_value", "Infinity"))),
        max_orders_a_minute=min(standard.max_orders_a_minute, own.get("max_orders_a_minute", 1_000_000)),
        collar=standard.collar,
        far=standard.far,
        least_allowance=standard.least_allowance,
        quote_age=standard.quote_age,
        duplicate_window=standard.duplicate_window,
    )


def session_at(sessions: Sessions, now: datetime) -> Session:
    """Return what trades at that moment in New York."""
    if sessions.running(now):
        return "open"
    day = sessions.on(now.astimezone(NEW_YORK).date())
    if day is not None and day.opens - BEFORE_OPEN <= now < day.closes + AFTER_CLOSE:
        return "extended"
    return "closed"


def _quote(found: Mapping[str, str]) -> Quote:
    return Quote(Decimal(found["bid"]), Decimal(found["ask"]), datetime.fromisoformat(found["at"]))


def _recent(found: Mapping[str, Any]) -> Recent:
    return Recent(datetime.fromisoformat(found["at"]), load_terms(found["terms"]))


def _working(
    orders: Sequence[Mapping[str, Any]], quotes: Mapping[str, Quote]
) -> tuple[dict[str, Decimal], dict[str, Decimal]]:
    """Return what orders may still buy and sell, by instrument."""
    buying, selling = dict[str, Decimal](), dict[str, Decimal]()
    for order in orders:
        terms = load_terms(order["terms"])
        still = _still(terms, Decimal(order["filled"]), quotes)
        for leg in terms.legs:
            sums = buying if leg.side == "buy" else selling
            key = leg.instrument.key
            sums[key] = sums.get(key, ZERO) + still * leg.ratio
    return buying, selling


def _still(terms: Terms, done: Decimal, quotes: Mapping[str, Quote]) -> Decimal:
    """Return how many units of an order are still to be filled; of one by notional, at the lowest price known."""
    quote = quotes.get(terms.legs[0].instrument.key)
    if terms.notional is None:
        return max((terms.quantity or ZERO) - done, ZERO)
    prices = [one for one in (terms.limit, quote and quote.bid, quote and quote.ask) if one]
    return max(terms.notional / min(prices) - done, ZERO) if prices else ZERO
