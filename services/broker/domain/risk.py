"""Whether an order may go out now: a pure function over a snapshot of the account, the market and the switches.

All refusals are returned, not only the first. What is asked first is the mode: nothing is live unless both the account
and the deployment say exactly "live".

What would surprise you: buying power is counted by a plain and careful rule (see `needed_cash`), not by the venue's
margin engine, which has the last word. An order that only closes what is held needs none and passes the size limits.
Those count a pair that is paid in coins by what the coins are worth in USD.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Context, Decimal, localcontext
from typing import Final, Literal

from services.broker.domain.checks import Refusal
from services.broker.domain.instruments import ONE, Crypto, Option
from services.broker.domain.orders import ZERO, Leg, Side, Terms

Mode = Literal["paper", "live"]
Session = Literal["open", "extended", "closed"]

_EXACT: Final = Context(prec=60)
_MINUTE: Final = timedelta(minutes=1)
_WAITING_TIMES: Final = frozenset({"day", "gtc", "opg", "cls"})


@dataclass(frozen=True, slots=True)
class Quote:
    """The last quote."""

    bid: Decimal
    ask: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class Limits:
    """What one account may do; money in the quote currency (for coins USD), shares of one (0.05 is 5 %)."""

    max_order_value: Decimal
    max_position_value: Decimal
    max_orders_a_minute: int
    collar: Decimal = Decimal("0.05")  # how much worse for us than the market a limit may be
    far: Decimal = Decimal("0.5")  # how much better; beyond it is taken for a slip of the hand
    least_allowance: Decimal = Decimal("0.05")  # collars of cheap options are not narrower than this
    quote_age: timedelta = timedelta(seconds=60)
    duplicate_window: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Recent:
    """An order of the account that was taken lately."""

    at: datetime
    terms: Terms


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known when an order is checked. Quantities by the instrument's key, above zero long or bought."""

    now: datetime
    buying_power: Decimal
    session: Session  # of the order's exchange; crypto is always open
    quotes: Mapping[str, Quote]
    held: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])
    buying: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])  # what working orders still may buy
    selling: Mapping[str, Decimal] = field(default_factory=dict[str, Decimal])  # and sell, above zero too
    recent: tuple[Recent, ...] = ()  # of the last minute and of the duplicate window, those asked for earlier
    before: int = 0  # how many there were of the last minute before those
    exits: bool = False  # it is an exit of a bracket or an OCO: it closes what their order was judged for
    replaces: bool = False  # it takes the place of another order, and may be what that one was
    entitled: bool = False
    halted_user: bool = True  # what nobody has looked up stays closed
    halted_all: bool = True


def mode(account: str, deployment: str) -> Mode | Refusal:
    """Return where orders go. Live needs both flags to read exactly "live"; what is neither word is refused."""
    if account == "paper":
        return "paper"
    if account == "live" and deployment == "live":
        return "live"
    if account == "live":
        return Refusal("LIVE_NOT_ENABLED", "this deployment does not trade live: use a paper account")
    return Refusal("MODE_UNKNOWN", "an account is paper or live: set it")


def assess(terms: Terms, limits: Limits, seen: Snapshot) -> tuple[Refusal, ...]:
    """Return all that stands against sending the order now. The terms have passed `checks.check`."""
    with localcontext(_EXACT):
        if seen.exits:
            return tuple(_switches(seen))
        if terms.order_class == "oco":
            return (*_switches(seen), *_pace(terms, limits, seen), *_there(terms, seen))
        return (*_switches(seen), *_pace(terms, limits, seen), *_hours(terms, seen), *_market(terms, limits, seen))


def needed_cash(terms: Terms, seen: Snapshot) -> Decimal:
    """Return the buying power that an order takes at its worst price. All its quotes are there.

    What only leaves a position takes nothing. One leg: what opens, bought or sold short, is covered wholly; a short
    option by its strike. Several legs: see `_several`.
    """
    with localcontext(_EXACT):
        if seen.exits or terms.order_class == "oco":
            return ZERO
        net = _net(terms, seen)
        if len(terms.legs) != 1:
            return _several(terms, seen, net)
        leg, each = terms.legs[0], abs(net)
        if terms.notional is not None:
            held = ZERO if leg.side == "buy" else _closable(leg, seen)
            return max(terms.notional - held * each, ZERO)
        if leg.side == "sell" and isinstance(leg.instrument, Option):
            each = max(each, leg.instrument.strike)
        return _opening(leg, terms.quantity or ZERO, seen) * each * leg.instrument.multiplier


def _several(terms: Terms, seen: Snapshot, net: Decimal) -> Decimal:
    """Return the buying power of several legs: what is paid, and what the legs that are sold short may cost.

    A short option is covered by a long one of the order that is no smaller, of the same right and does not expire
    earlier: then it costs at most what its strike is worse, less what is received. Each long one covers once. Any
    other is covered by its strike, and a share sold short by its price; what is received counts for nothing then.
    """
    longs = [leg for leg in terms.legs if leg.side == "buy"]
    risk, bare = ZERO, ZERO
    for leg in terms.legs:
        opens = _opening(leg, _of_leg(terms, leg), seen)
        if leg.side == "buy" or not opens:
            continue
        enough = [one for one in longs if _opening(one, _of_leg(terms, one), seen) >= opens]
        covering = [(gap, one) for one in enough if (gap := _gap(one, leg)) is not None]
        if covering:
            gap, best = min(covering, key=lambda pair: pair[0])
            longs.remove(best)
            risk += opens * gap * leg.instrument.multiplier
        else:
            each = leg.instrument.strike if isinstance(leg.instrument, Option) else _worst(leg, seen)
            bare += opens * each * leg.instrument.multiplier
    paid = net * (terms.quantity or ZERO) * _multiplier(terms)
    return max(paid, ZERO) + risk + bare if bare else max(paid + risk, ZERO)


def _gap(long: Leg, short: Leg) -> Decimal | None:
    """Return how much worse the strike of a long option is than that of a short one; None where it covers nothing."""
    one, other = long.instrument, short.instrument
    if not (isinstance(one, Option) and isinstance(other, Option)):
        return None
    if (one.underlying, one.right) != (other.underlying, other.right) or one.expires_on < other.expires_on:
        return None
    return max(one.strike - other.strike if one.right == "C" else other.strike - one.strike, ZERO)


def _switches(seen: Snapshot) -> Iterator[Refusal]:
    if seen.halted_all:
        yield Refusal("HALTED", "trading is halted for everybody: wait until it is resumed")
    if seen.halted_user:
        yield Refusal("USER_HALTED", "trading is halted for this user: resume it first")
    if not seen.entitled:
        yield Refusal("PLAN_REQUIRED", "the plan does not include trading: choose one that does")


def _pace(terms: Terms, limits: Limits, seen: Snapshot) -> Iterator[Refusal]:
    lately = seen.before + sum(seen.now - one.at < _MINUTE for one in seen.recent)
    if lately >= limits.max_orders_a_minute:
        yield Refusal("TOO_MANY_ORDERS", f"{limits.max_orders_a_minute} orders a minute are allowed: wait")
    window = limits.duplicate_window
    if not seen.replaces and any(one.terms == terms and seen.now - one.at < window for one in seen.recent):
        yield Refusal("DUPLICATE_ORDER", f"the same order came within {window.total_seconds():g} s: wait or change it")


def _hours(terms: Terms, seen: Snapshot) -> Iterator[Refusal]:
    if seen.session == "open" or all(isinstance(leg.instrument, Crypto) for leg in terms.legs):
        return
    if seen.session == "extended" and terms.extended_hours:
        return
    if terms.time_in_force not in _WAITING_TIMES:
        yield Refusal("MARKET_CLOSED", f"a {terms.time_in_force} order cannot wait for the opening: use day or gtc")
    elif terms.type == "market" and terms.time_in_force not in {"opg", "cls"}:
        yield Refusal("MARKET_CLOSED", "a market order does not wait for an unknown price: give a limit, or use opg")


def _there(terms: Terms, seen: Snapshot) -> Iterator[Refusal]:
    """Hold an OCO to what is held and not promised to another order yet."""
    leg = terms.legs[0]
    closable = _closable(leg, seen)
    if closable < _of_leg(terms, leg):
        yield Refusal("NOTHING_HELD", f"{closable:f} of {leg.instrument.key} can be closed: make it smaller")


def _market(terms: Terms, limits: Limits, seen: Snapshot) -> Iterator[Refusal]:
    missing = [leg.instrument.key for leg in terms.legs if not _priced(leg, limits, seen)]
    if missing:
        yield Refusal("NO_QUOTE", f"there is no fresh quote of {', '.join(missing)}: try again when there is")
        return
    limit = _net_limit(terms)
    if limit is not None:
        yield from _collar(limit, _natural(terms, seen), limits)
    yield from _sizes(terms, limits, seen)
    needed = needed_cash(terms, seen)
    if needed > seen.buying_power:
        yield Refusal("BUYING_POWER", f"the order needs {needed:f}, {seen.buying_power:f} is there: make it smaller")


def _collar(limit: Decimal, natural: Decimal, limits: Limits) -> Iterator[Refusal]:
    dearer = max(abs(natural) * limits.collar, limits.least_allowance)
    cheaper = max(abs(natural) * limits.far, limits.least_allowance)
    if limit > natural + dearer:
        yield Refusal("PRICE_COLLAR", f"the limit is more than {dearer:f} worse than the market ({abs(natural):f})")
    if limit < natural - cheaper:
        yield Refusal("PRICE_FAR", f"the limit is more than {cheaper:f} better than the market ({abs(natural):f})")


def _sizes(terms: Terms, limits: Limits, seen: Snapshot) -> Iterator[Refusal]:
    opens = terms.notional is not None or any(_opening(leg, _of_leg(terms, leg), seen) > 0 for leg in terms.legs)
    if not opens:
        return
    if unvalued := [key for leg in terms.legs if (key := _valued_by(leg)) and not _worth(leg, limits, seen)]:
        yield Refusal("NO_QUOTE", f"there is no fresh quote of {', '.join(unvalued)} to value it by: use another pair")
        return
    value = (terms.notional or _value(terms, seen)) * _worth(terms.legs[0], limits, seen)
    if value > limits.max_order_value:
        yield Refusal("ORDER_TOO_LARGE", f"the order is worth {value:f}, {limits.max_order_value:f} is allowed")
    for leg in terms.legs:
        price, key = _worst(leg, seen), leg.instrument.key
        adds = _of_leg(terms, leg) if terms.notional is None else terms.notional / price
        working = (seen.buying if leg.side == "buy" else seen.selling).get(key, ZERO)
        units = abs(seen.held.get(key, ZERO) + _sign(leg.side) * (adds + working))
        after = units * price * leg.instrument.multiplier * _worth(leg, limits, seen)
        if after > limits.max_position_value:
            yield Refusal(
                "POSITION_TOO_LARGE", f"{key} would be worth {after:f}, {limits.max_position_value:f} is allowed"
            )


def _valued_by(leg: Leg) -> str | None:
    return leg.instrument.valued_by if isinstance(leg.instrument, Crypto) else None


def _worth(leg: Leg, limits: Limits, seen: Snapshot) -> Decimal:
    """Return what one of what a leg is paid in is worth: of money one, of a coin its ask in USD; zero is unknown."""
    key = _valued_by(leg)
    if key is None:
        return ONE
    return seen.quotes[key].ask if _fresh(key, limits, seen) else ZERO


def _value(terms: Terms, seen: Snapshot) -> Decimal:
    """Return what an order is worth; of several legs the sum of all, for their net may be next to nothing."""
    net = abs(_net(terms, seen)) * (terms.quantity or ZERO) * _multiplier(terms)
    if len(terms.legs) == 1:
        return net
    gross = (_worst(leg, seen) * _of_leg(terms, leg) * leg.instrument.multiplier for leg in terms.legs)
    return max(net, sum(gross, ZERO))


def _priced(leg: Leg, limits: Limits, seen: Snapshot) -> bool:
    """Return whether a leg has a price that counts."""
    return _fresh(leg.instrument.key, limits, seen) and _worst(leg, seen) > 0


def _fresh(key: str, limits: Limits, seen: Snapshot) -> bool:
    """Return whether a quote counts by its age. One from ahead of our clock is as wrong as an old one."""
    quote = seen.quotes.get(key)
    return quote is not None and abs(seen.now - quote.at) <= limits.quote_age


def _net(terms: Terms, seen: Snapshot) -> Decimal:
    """Return what one unit costs at worst; below zero is received."""
    limit = _net_limit(terms)
    return _natural(terms, seen) if limit is None else limit


def _natural(terms: Terms, seen: Snapshot) -> Decimal:
    """Return what one unit costs at the market, or at its stop where that is worse: one on the wrong side goes at once.

    Of several legs, one that nobody bids for brings nothing; 100 shares beside a call count by the price of one share.
    """
    leg, *others = terms.legs
    if others:
        unit = _multiplier(terms)
        each = (
            _sign(one.side) * one.ratio * _at_market(one, seen) * one.instrument.multiplier / unit for one in terms.legs
        )
        return sum(each, ZERO)
    natural = _sign(leg.side) * _worst(leg, seen)
    return natural if terms.stop is None else max(natural, _sign(leg.side) * terms.stop)


def _at_market(leg: Leg, seen: Snapshot) -> Decimal:
    quote = seen.quotes[leg.instrument.key]
    return quote.ask if leg.side == "buy" else quote.bid


def _worst(leg: Leg, seen: Snapshot) -> Decimal:
    """Return the price at which a leg trades at once. What has no bid is still sold for next to nothing."""
    quote = seen.quotes[leg.instrument.key]
    return quote.ask if leg.side == "buy" else quote.bid or quote.ask


def _net_limit(terms: Terms) -> Decimal | None:
    leg, *others = terms.legs
    return terms.limit if others or terms.limit is None else _sign(leg.side) * terms.limit


def _opening(leg: Leg, quantity: Decimal, seen: Snapshot) -> Decimal:
    """Return how much of a leg opens, where working orders of the same side close first."""
    return max(quantity - _closable(leg, seen), ZERO)


def _closable(leg: Leg, seen: Snapshot) -> Decimal:
    held = seen.held.get(leg.instrument.key, ZERO) * -_sign(leg.side)
    working = (seen.buying if leg.side == "buy" else seen.selling).get(leg.instrument.key, ZERO)
    return max(held - working, ZERO)


def _of_leg(terms: Terms, leg: Leg) -> Decimal:
    return (terms.quantity or ZERO) * leg.ratio


def _multiplier(terms: Terms) -> Decimal:
    """Return what one unit of the net price counts: a hundredfold as soon as an option is in it."""
    return max(leg.instrument.multiplier for leg in terms.legs)


def _sign(side: Side) -> int:
    return 1 if side == "buy" else -1
