"""What is wrong with the terms of an order before anything else is known: each refusal says what to change.

What a venue can do and an instrument's ticks and steps come in as values. What depends on money, the market and the
account's other orders is in `risk`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Context, Decimal, localcontext
from math import gcd
from typing import Final, Literal

from services.broker.domain.instruments import LIES_UNDER, Crypto, Equity, Instrument, Option
from services.broker.domain.orders import Exits, Leg, OrderClass, OrderType, Terms, TimeInForce

AssetClass = Literal["equity", "option", "crypto"]

_EXACT: Final = Context(prec=60)
_LIMITED: Final[frozenset[OrderType]] = frozenset({"limit", "stop_limit"})
_STOPPED: Final[frozenset[OrderType]] = frozenset({"stop", "stop_limit"})
_LARGEST: Final = Decimal("1e15")
_SMALLEST: Final = Decimal("1e-18")
_SANE: Final = "and below 1e15, with 18 decimals at most"
_WHOLE_PERCENT: Final = 100
_PAIR: Final = 2


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an order does not go out. `code` is stable; the message says what to change."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a venue takes."""

    venue: str
    types: frozenset[OrderType]
    times: Mapping[AssetClass, frozenset[TimeInForce]]  # what is not named is not traded there
    classes: frozenset[OrderClass] = frozenset({"simple"})
    notional: frozenset[AssetClass] = frozenset()
    quotes: frozenset[AssetClass] = frozenset()  # what it tells the bid and ask of when it is asked
    extended_hours: bool = False
    most_legs: int = 4


@dataclass(frozen=True, slots=True)
class TradeRules:
    """An instrument's steps. `ticks` are (from this price on, the tick), rising."""

    ticks: tuple[tuple[Decimal, Decimal], ...]
    quantity_step: Decimal
    least_quantity: Decimal
    tradable: bool = True

    def tick(self, price: Decimal) -> Decimal:
        """Return the tick at a price; that of the lowest band below all bands."""
        fitting = [tick for bound, tick in self.ticks if abs(price) >= bound]
        return fitting[-1] if fitting else self.ticks[0][1]


def asset_class(of: Instrument) -> AssetClass:
    """Return what kind of thing it is."""
    match of:
        case Equity():
            return "equity"
        case Option():
            return "option"
        case Crypto():
            return "crypto"


def check(terms: Terms, venue: Capabilities, rules: Mapping[str, TradeRules], today: date) -> tuple[Refusal, ...]:
    """Return all that is wrong; nothing when it may go on to the risk check. `today` is the exchange's day."""
    if not terms.legs:
        return (Refusal("LEGS_REQUIRED", "name at least one instrument"),)
    with localcontext(_EXACT):
        found = (
            *_numbers(terms),
            *_venue(terms, venue),
            *_prices_for_type(terms),
            *_legs(terms, venue),
            *_exits(terms),
            *_instruments(terms, rules, today),
        )
        if any(one.code.endswith("_INVALID") for one in found):
            return found  # nothing can be measured against steps
        return (*found, *_steps(terms, rules))


# Numbers


def _numbers(terms: Terms) -> Iterator[Refusal]:
    if (terms.quantity is None) == (terms.notional is None):
        yield Refusal("QUANTITY_OR_NOTIONAL", "give a quantity or a notional amount, one of both")
    for name, value in (("quantity", terms.quantity), ("notional", terms.notional)):
        if value is not None and not (_sane(value) and value > 0):
            yield Refusal("QUANTITY_INVALID", f"{name} {value} is not a number above zero {_SANE}")
    net = len(terms.legs) > 1
    for name, price in _prices(terms):
        if not _sane(price) or (price <= 0 and not (net and name == "limit")):
            yield Refusal("PRICE_INVALID", f"{name} {price} is not a price above zero {_SANE}")
    percent = terms.trail_percent
    if percent is not None and _sane(percent) and percent >= _WHOLE_PERCENT:
        yield Refusal("PRICE_INVALID", "trail_percent is below 100")


def _sane(value: Decimal) -> bool:
    """Return whether it can be reckoned with exactly."""
    # compared, not reckoned with, before its size is known: abs() of 1e9999999 is an error
    return value.is_finite() and -_LARGEST < value < _LARGEST and value == value.quantize(_SMALLEST)


def _prices(terms: Terms) -> list[tuple[str, Decimal]]:
    exits = terms.exits
    named = [
        ("limit", terms.limit),
        ("stop", terms.stop),
        ("trail_amount", terms.trail_amount),
        ("trail_percent", terms.trail_percent),
        ("exits.take_profit", exits and exits.take_profit),
        ("exits.stop_loss", exits and exits.stop_loss),
        ("exits.stop_loss_limit", exits and exits.stop_loss_limit),
    ]
    return [(name, price) for name, price in named if price is not None]


def _steps(terms: Terms, rules: Mapping[str, TradeRules]) -> Iterator[Refusal]:
    known = [rules[leg.instrument.key] for leg in terms.legs if leg.instrument.key in rules]
    for name, price in _prices(terms):
        ticks = [one.tick(price) for one in known]
        if name != "trail_percent" and ticks and price % min(ticks):
            yield Refusal("TICK_SIZE", f"{name} {price} is not a multiple of {min(ticks)}")
    if terms.quantity is None:
        return
    for leg in terms.legs:
        rule, quantity = rules.get(leg.instrument.key), terms.quantity * leg.ratio
        if rule is not None and quantity % rule.quantity_step:
            yield Refusal("QUANTITY_STEP", f"{leg.instrument.key} trades in multiples of {rule.quantity_step}")
        if rule is not None and quantity < rule.least_quantity:
            yield Refusal("QUANTITY_TOO_SMALL", f"the least of {leg.instrument.key} is {rule.least_quantity}")


# What the venue takes


def _venue(terms: Terms, venue: Capabilities) -> Iterator[Refusal]:
    kinds: set[AssetClass] = {asset_class(leg.instrument) for leg in terms.legs}
    for kind in sorted(kinds):
        times = venue.times.get(kind)
        if times is None:
            yield Refusal("INSTRUMENT_NOT_SUPPORTED", f"{venue.venue} does not trade {kind}: choose another venue")
        elif terms.time_in_force not in times:
            allowed = ", ".join(sorted(times))
            yield Refusal("TIF_NOT_SUPPORTED", f"{venue.venue} takes {allowed} for {kind}, not {terms.time_in_force}")
        if terms.notional is not None and kind not in venue.notional:
            yield Refusal("NOTIONAL_NOT_SUPPORTED", f"give a quantity: {venue.venue} takes no notional for {kind}")
    if terms.type not in venue.types:
        yield Refusal("TYPE_NOT_SUPPORTED", f"{venue.venue} takes {', '.join(sorted(venue.types))}, not {terms.type}")
    if terms.exits is not None:
        yield from _exit_types(terms.exits, venue)
    elif terms.order_class not in venue.classes:
        yield Refusal("CLASS_NOT_SUPPORTED", f"{venue.venue} takes no {terms.order_class} orders: send them apart")
    if terms.extended_hours and not venue.extended_hours:
        yield Refusal("EXTENDED_HOURS_NOT_SUPPORTED", f"{venue.venue} does not trade outside regular hours")
    if terms.extended_hours and (terms.type, terms.time_in_force) not in {("limit", "day"), ("limit", "gtc")}:
        yield Refusal("EXTENDED_HOURS_NOT_ALLOWED", "outside regular hours only limit orders, day or gtc, are taken")


def _exit_types(exits: Exits, venue: Capabilities) -> Iterator[Refusal]:
    """No venue is told of exits: what it has to take are the orders that they consist of."""
    stop: OrderType = "stop" if exits.stop_loss_limit is None else "stop_limit"
    if not {"limit", stop} <= venue.types:
        yield Refusal("CLASS_NOT_SUPPORTED", f"{venue.venue} lacks what exits consist of: limit and {stop} orders")


def _prices_for_type(terms: Terms) -> Iterator[Refusal]:
    pairs = (
        ("LIMIT", terms.limit is not None, terms.type in _LIMITED and terms.order_class != "oco"),
        ("STOP", terms.stop is not None, terms.type in _STOPPED),
    )
    for name, given, needed in pairs:
        if needed and not given:
            yield Refusal(f"{name}_REQUIRED", f"a {terms.type} order needs a {name.lower()} price")
        if given and not needed:
            yield Refusal(f"{name}_NOT_ALLOWED", f"leave the {name.lower()} price out of a {terms.type} order")
    trails = [one for one in (terms.trail_amount, terms.trail_percent) if one is not None]
    if terms.type == "trailing_stop" and len(trails) != 1:
        yield Refusal("TRAIL_REQUIRED", "give trail_amount or trail_percent, one of both")
    if terms.type != "trailing_stop" and trails:
        yield Refusal("TRAIL_NOT_ALLOWED", f"leave the trail out of a {terms.type} order")


# Legs


def _legs(terms: Terms, venue: Capabilities) -> Iterator[Refusal]:
    legs, several = terms.legs, len(terms.legs) > 1
    if several != (terms.order_class == "multi_leg"):
        yield Refusal("LEGS_DISAGREE", "an order of class multi_leg, and no other, has several legs")
    if any(leg.ratio < 1 for leg in legs) or gcd(*(leg.ratio for leg in legs)) != 1:
        yield Refusal("LEGS_DISAGREE", "ratios are whole, above zero and in lowest terms")
    if not several:
        if terms.strategy is not None:
            yield Refusal("LEGS_DISAGREE", f"a {terms.strategy} has two legs")
        return
    yield from _several(terms, venue)
    if terms.strategy is not None:
        yield from _strategy(terms.strategy, legs)


def _several(terms: Terms, venue: Capabilities) -> Iterator[Refusal]:
    legs = terms.legs
    if len(legs) > venue.most_legs:
        yield Refusal("LEGS_TOO_MANY", f"{venue.venue} takes {venue.most_legs} legs: split the order")
    if len({leg.instrument.key for leg in legs}) < len(legs):
        yield Refusal("LEGS_DISAGREE", "an instrument stands in two legs: make one of them")
    if len({leg.instrument.underlying for leg in legs}) > 1:
        yield Refusal("LEGS_DISAGREE", "the legs lie under different underlyings")
    if terms.type not in {"market", "limit"}:
        yield Refusal("TYPE_NOT_SUPPORTED", "several legs go by market or limit")
    if terms.notional is not None:
        yield Refusal("NOTIONAL_NOT_SUPPORTED", "give a quantity: several legs have no notional")


def _strategy(name: str, legs: tuple[Leg, ...]) -> Iterator[Refusal]:
    options = [leg.instrument for leg in legs if isinstance(leg.instrument, Option)]
    if len(legs) != _PAIR or len(options) != _PAIR:
        yield Refusal("LEGS_DISAGREE", f"a {name} has two options")
        return
    one, other = options
    spread = name in {"vertical", "calendar"}
    wanted = (
        ("ratios", len({leg.ratio for leg in legs}) == 1, True),
        ("sides", len({leg.side for leg in legs}) == 1, not spread),
        ("rights", one.right == other.right, spread),
        ("expirations", one.expires_on == other.expires_on, name != "calendar"),
        ("strikes", one.strike == other.strike, name in {"calendar", "straddle"}),
    )
    for what, same, should in wanted:
        if same != should:
            yield Refusal("LEGS_DISAGREE", f"the {what} of a {name} are {'the same' if should else 'different'}")


def _exits(terms: Terms) -> Iterator[Refusal]:
    exits = terms.exits
    if (exits is None) != (terms.order_class not in {"bracket", "oco"}):
        yield Refusal("EXITS_DISAGREE", "a bracket and an oco, and no other, have take_profit and stop_loss")
    leg, *others = terms.legs
    if exits is None or others:
        return
    if terms.order_class == "oco" and (terms.type != "limit" or terms.quantity is None or terms.extended_hours):
        yield Refusal("EXITS_DISAGREE", "an oco is of type limit, by quantity, and for regular hours")
    # What leaves a long position is sold: for a bracket its entry buys, an oco itself sells.
    long = (leg.side == "buy") == (terms.order_class == "bracket")
    low, high = (exits.stop_loss, exits.take_profit) if long else (exits.take_profit, exits.stop_loss)
    finite = all(price.is_finite() for _, price in _prices(terms))
    if finite and not low < high:
        yield Refusal("EXITS_DISAGREE", f"take_profit is {'above' if long else 'below'} stop_loss")
    elif finite and terms.order_class == "bracket" and terms.limit is not None and not low < terms.limit < high:
        yield Refusal("EXITS_DISAGREE", "the limit of a bracket is between take_profit and stop_loss")


def _instruments(terms: Terms, rules: Mapping[str, TradeRules], today: date) -> Iterator[Refusal]:
    for leg in terms.legs:
        of = leg.instrument
        rule = rules.get(of.key)
        if rule is None:
            yield Refusal("UNKNOWN_SYMBOL", f"the venue does not know {of.key}")
        elif not rule.tradable:
            yield Refusal("NOT_TRADABLE", f"{of.key} is not traded now")
        if isinstance(of, Option) and of.expires_on < today:
            yield Refusal("OPTION_EXPIRED", f"{of.key} has expired: choose a later one")
        if isinstance(of, Option) and not of.adjusted and of.underlying != LIES_UNDER.get(of.root, of.root):
            yield Refusal("UNDERLYING_WRONG", f"{of.key} does not lie under {of.underlying}: leave the underlying out")
        if isinstance(of, Option) and of.adjusted and leg.opens is not False:
            yield Refusal("OPTION_ADJUSTED", f"{of.key} is an adjusted contract: it can be closed, not opened")
