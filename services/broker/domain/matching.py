"""How the paper venue fills an order: a book of one level for each instrument, and what the order takes of it. Pure.

A buy takes the ask and a sell the bid, made worse by some slippage; several legs are filled all or none, by their net
price. Nothing is filled beyond its limit, nor more than the level shows where its size is known. A stop is triggered
when the side that it would take reaches its price, and goes on as a market or limit order.

What would surprise you: chance is in the slippage only, and comes in as a `Random`: the same one fills alike. A price
of zero on a side is no offer. A crossed book (bid above ask) fills and triggers nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, ROUND_DOWN, Context, Decimal, localcontext
from random import Random
from typing import Final

from services.broker.domain.instruments import Crypto, Equity, Instrument, Option
from services.broker.domain.orders import ZERO, Leg, Terms

EXACT: Final = Context(prec=60)
CENT: Final = Decimal("0.01")
_ONE: Final = Decimal(1)
_FRACTION: Final = Decimal("1e-9")  # quantities that are not whole are in multiples of it
_GRID: Final = Decimal("0.0001")  # of prices after slippage, a hundredth of a cent as venues report them
_CRYPTO_GRID: Final = Decimal("1e-8")
_TEN_THOUSAND: Final = Decimal(10_000)
_CHANCES: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Book:
    """One level: the best bid and ask, None where nobody offers; sizes in units, None where nobody knows."""

    bid: Decimal | None
    ask: Decimal | None
    at: datetime
    bid_size: Decimal | None = None
    ask_size: Decimal | None = None

    @property
    def crossed(self) -> bool:
        """Whether it cannot be: somebody pays more than somebody asks, or a price is no number."""
        given = [price for price in (self.bid, self.ask) if price is not None]
        return not all(price.is_finite() for price in given) or given != sorted(given)

    def offer(self, *, buys: bool) -> Decimal | None:
        """Return the price that a buyer or a seller takes; None when nobody offers one above zero."""
        price = self.ask if buys else self.bid
        return price if not self.crossed and price is not None and price > 0 else None

    def size(self, *, buys: bool) -> Decimal | None:
        """Return how much is offered at that price; None when nobody knows."""
        return self.ask_size if buys else self.bid_size

    def less(self, quantity: Decimal, *, buys: bool) -> "Book":
        """Return what is left after so much was taken."""
        if buys:
            return self if self.ask_size is None else replace(self, ask_size=max(self.ask_size - quantity, ZERO))
        return self if self.bid_size is None else replace(self, bid_size=max(self.bid_size - quantity, ZERO))


@dataclass(frozen=True, slots=True)
class Model:
    """How the venue treats orders. Fees of an execution are rounded up to the cent."""

    slippage_bps: Decimal = ZERO  # of the price at most; how much of it an execution suffers is chance
    share: Decimal = Decimal(1)  # of the size that is shown, what one order may take of one quote
    latency: timedelta = timedelta()  # until an order works, and until a cancel or a replacement takes effect
    fee_a_share: Decimal = ZERO
    fee_a_contract: Decimal = Decimal("0.65")
    crypto_fee_bps: Decimal = Decimal(25)  # of what is paid
    stale_after: timedelta = timedelta(seconds=60)  # an older quote fills nothing


@dataclass(frozen=True, slots=True)
class Working:
    """An order in the book. `filled` counts units of the whole; `spent` is the part of a notional that is used."""

    terms: Terms
    filled: Decimal = ZERO
    spent: Decimal = ZERO
    best: Decimal | None = None  # of a trailing stop: the best price for it so far, from which its trail is counted
    triggered: bool = False


@dataclass(frozen=True, slots=True)
class Take:
    """What one leg is filled with."""

    leg: int
    quantity: Decimal
    price: Decimal
    fee: Decimal


@dataclass(frozen=True, slots=True)
class Match:
    """The order after it met the book, and its fills; `whole` when nothing is left to be filled."""

    order: Working
    takes: tuple[Take, ...] = ()
    whole: bool = False


def match(order: Working, books: Mapping[str, Book], model: Model, random: Random) -> Match:
    """Return what an order takes of the books, by their instruments' keys. The terms have passed `checks.check`."""
    with localcontext(EXACT):
        order = _watched(order, books)
        terms = order.terms
        offers = _offers(terms.legs, books)
        if offers is None or not _released(order):
            return Match(order)
        room = None if terms.limit is None else net_limit(terms, terms.limit) - net(terms.legs, offers)
        if room is not None and room < 0:
            return Match(order)
        prices = _slipped(terms.legs, offers, room, model, random)
        left = _left(order, prices)
        if left <= 0:  # what is left of a notional buys nothing at this price
            return Match(order, whole=order.filled > 0)
        units = min(left, _shown(terms, books, model))
        if units <= 0 or (terms.time_in_force == "fok" and units < left):
            return Match(order)
        takes = tuple(
            Take(index, units * leg.ratio, price, fee(leg.instrument, units * leg.ratio, price, model))
            for index, (leg, price) in enumerate(zip(terms.legs, prices, strict=True))
        )
        spent = order.spent + (units * abs(net(terms.legs, prices)) if terms.notional is not None else ZERO)
        return Match(replace(order, filled=order.filled + units, spent=spent), takes, units == left)


# Prices


def net(legs: Sequence[Leg], prices: Sequence[Decimal]) -> Decimal:
    """Return what one unit costs, in the price's own terms; below zero it is received.

    Where an option is among the legs that is a hundredth of the money, so that 100 shares beside a call count by the
    price of one share.
    """
    unit = multiplier(legs)
    each = (
        (1 if leg.side == "buy" else -1) * leg.ratio * price * leg.instrument.multiplier / unit
        for leg, price in zip(legs, prices, strict=True)
    )
    return sum(each, ZERO)


def multiplier(legs: Sequence[Leg]) -> Decimal:
    """Return by what a net price is multiplied to be money."""
    return max(leg.instrument.multiplier for leg in legs)


def net_limit(terms: Terms, limit: Decimal) -> Decimal:
    """Return the limit as the greatest net price."""
    leg, *others = terms.legs
    return limit if others or leg.side == "buy" else -limit


def fee(of: Instrument, quantity: Decimal, price: Decimal, model: Model) -> Decimal:
    """Return what an execution costs, up to the cent."""
    match of:
        case Equity():
            exact = quantity * model.fee_a_share
        case Option():
            exact = quantity * model.fee_a_contract
        case Crypto():
            exact = quantity * price * model.crypto_fee_bps / _TEN_THOUSAND
    return exact.quantize(CENT, rounding=ROUND_CEILING)


def stop_price(order: Working) -> Decimal | None:
    """Return where an order is triggered; None when it has no stop, or a trail that has seen no price yet."""
    terms, best = order.terms, order.best
    if terms.type != "trailing_stop":
        return terms.stop
    if best is None:
        return None
    away = terms.trail_amount if terms.trail_amount is not None else best * (terms.trail_percent or ZERO) / 100
    return best + away if terms.legs[0].side == "buy" else best - away


def _offers(legs: Sequence[Leg], books: Mapping[str, Book]) -> list[Decimal] | None:
    found: list[Decimal] = []
    for leg in legs:
        book = books.get(leg.instrument.key)
        price = book and book.offer(buys=leg.side == "buy")
        if price is None:
            return None
        found.append(price)
    return found


def _slipped(
    legs: Sequence[Leg], offers: Sequence[Decimal], room: Decimal | None, model: Model, random: Random
) -> list[Decimal]:
    """Return the prices after slippage, which uses up the room below the limit leg by leg and never more."""
    if not model.slippage_bps:
        return list(offers)
    found, unit = list[Decimal](), multiplier(legs)
    for leg, offer in zip(legs, offers, strict=True):
        grid = _CRYPTO_GRID if isinstance(leg.instrument, Crypto) else _GRID
        chance = Decimal(random.randint(0, _CHANCES)) / _CHANCES
        slip = _down(offer * model.slippage_bps / _TEN_THOUSAND * chance, grid)
        weight = leg.ratio * leg.instrument.multiplier / unit
        if room is not None:
            slip = min(slip, _down(room / weight, grid))
            room -= slip * weight
        found.append(offer + slip if leg.side == "buy" else offer - min(slip, _down(offer / 2, grid)))
    return found


# Quantities


def _left(order: Working, prices: Sequence[Decimal]) -> Decimal:
    terms = order.terms
    if terms.quantity is not None:
        return terms.quantity - order.filled
    each = prices[0] * terms.legs[0].instrument.multiplier
    return _down(((terms.notional or ZERO) - order.spent) / each, _FRACTION)


def _shown(terms: Terms, books: Mapping[str, Book], model: Model) -> Decimal:
    """Return how many units the books show for one order."""
    whole = terms.quantity is not None and terms.quantity == terms.quantity.to_integral_value()
    step = _ONE if whole and not isinstance(terms.legs[0].instrument, Crypto) else _FRACTION
    found = Decimal("Infinity")
    for leg in terms.legs:
        size = books[leg.instrument.key].size(buys=leg.side == "buy")
        if size is not None:
            found = min(found, _down(size * model.share / leg.ratio, step))
    return found


def _down(value: Decimal, step: Decimal) -> Decimal:
    return value.quantize(step, rounding=ROUND_DOWN)


# Stops


def _released(order: Working) -> bool:
    return order.triggered or order.terms.type in {"market", "limit"}


def _watched(order: Working, books: Mapping[str, Book]) -> Working:
    """Return a stop as it is after the quote: its trail moved, or triggered."""
    leg = order.terms.legs[0]
    buys = leg.side == "buy"
    book = books.get(leg.instrument.key)
    price = book and book.offer(buys=buys)
    if price is None or _released(order):
        return order
    if order.terms.type == "trailing_stop":
        best = price if order.best is None else min(order.best, price) if buys else max(order.best, price)
        order = replace(order, best=best)
    stop = stop_price(order)
    if stop is None or (price < stop if buys else price > stop):
        return order
    return replace(order, triggered=True)
