"""What is held of an instrument, and what was made with it: a fold over facts, in the order in which they happened.

A fact is a fill, a split, or an expiry; exercise and assignment are an expiry and a fill (see `delivery`). FIFO and
average cost are kept side by side. Signs: a quantity above zero is long, below zero short; the cost of what is short
is what was received, below zero. At every moment, for both ways alike and exactly:

    realised - fees + (quantity * price * multiplier - cost) == cash + quantity * price * multiplier

What would surprise you: a lot keeps its cost, not its price. What is closed of a lot takes its share of the cost,
rounded to 12 decimals, and the rest keeps what remains, so that no split and no division loses anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from functools import reduce
from typing import Final, Literal
from uuid import UUID

from services.broker.domain.instruments import Equity, Instrument, Option
from services.broker.domain.orders import ZERO, Fill
from shared.errors import Invalid

Way = Literal["fifo", "average"]
Delivery = Literal["exercised", "assigned"]

_EXACT: Final = Context(prec=60, rounding=ROUND_HALF_EVEN)
_SHARE: Final = Decimal("1e-12")
"""Shares of costs and quantities are rounded to this."""


class BadFact(Invalid):
    """That cannot have happened to the position."""

    code = "BAD_POSITION_FACT"


@dataclass(frozen=True, slots=True)
class Split:
    """`new` for `old`. `quantity_after` is what the venue says is held then; `cash` came in lieu of the fraction."""

    id: str
    instrument: Instrument
    at: datetime
    new: Decimal
    old: Decimal
    quantity_after: Decimal | None = None
    cash: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Expiry:
    """So many contracts are gone: at zero, exercised or assigned at zero too, or cash-settled at `price`."""

    id: str
    instrument: Instrument
    at: datetime
    quantity: Decimal  # above zero
    price: Decimal = ZERO


@dataclass(frozen=True, slots=True)
class Charge:
    """A fee that the venue takes apart from a fill; below zero it is given back."""

    id: str
    instrument: Instrument
    at: datetime
    fee: Decimal


PositionFact = Fill | Split | Expiry | Charge


@dataclass(frozen=True, slots=True)
class Lot:
    """What one fill has opened and what is left of it. `cost` has the quantity's sign."""

    fact_id: str
    at: datetime
    quantity: Decimal
    cost: Decimal


@dataclass(frozen=True, slots=True)
class Position:
    """What is held of one instrument in one account. Sums are in the quote currency; `realised` is before fees."""

    instrument: Instrument
    lots: tuple[Lot, ...] = ()
    average_cost: Decimal = ZERO  # of all that is held
    realised_fifo: Decimal = ZERO
    realised_average: Decimal = ZERO
    fees: Decimal = ZERO
    cash: Decimal = ZERO  # what came in less what went out, fees included

    @property
    def quantity(self) -> Decimal:
        """Above zero long, below zero short."""
        with localcontext(_EXACT):
            return sum((lot.quantity for lot in self.lots), ZERO)

    def cost(self, way: Way) -> Decimal:
        """Return what is held has cost; below zero when it is short."""
        if way == "average":
            return self.average_cost
        with localcontext(_EXACT):
            return sum((lot.cost for lot in self.lots), ZERO)

    def realised(self, way: Way) -> Decimal:
        """Return what was made with what is closed, before fees."""
        return self.realised_average if way == "average" else self.realised_fifo

    def value(self, price: Decimal) -> Decimal:
        """Return what it is worth at a price; below zero when it is short."""
        with localcontext(_EXACT):
            return self.quantity * price * self.instrument.multiplier

    def unrealised(self, price: Decimal, way: Way) -> Decimal:
        """Return what closing it at a price would make, before fees."""
        with localcontext(_EXACT):
            return self.value(price) - self.cost(way)

    def entry_price(self, way: Way) -> Decimal | None:
        """Return the price that it was opened at on average; None when nothing is held."""
        quantity = self.quantity
        return self.cost(way) / (quantity * self.instrument.multiplier) if quantity else None


Book = Mapping[str, Position]
"""The positions of one account, by the instrument's key."""


def rebuild(facts: Iterable[PositionFact]) -> Book:
    """Return an account's positions from all its facts, given in whatever order. A fact counts once by its id."""
    once = {fact.id: fact for fact in facts}
    book: dict[str, Position] = {}
    for fact in sorted(once.values(), key=lambda fact: (fact.at, fact.id)):
        key = fact.instrument.key
        book[key] = apply(book.get(key, Position(fact.instrument)), fact)
    return book


def apply(position: Position, fact: PositionFact) -> Position:
    """Return the position after a fact. Raises BadFact for another instrument's, and for what cannot be."""
    if fact.instrument.key != position.instrument.key:
        raise BadFact("the fact is another instrument's", id=fact.id, instrument=fact.instrument.key)
    with localcontext(_EXACT):
        match fact:
            case Fill():
                return _filled(position, fact)
            case Split():
                return _split(position, fact)
            case Expiry():
                return _expired(position, fact)
            case Charge():
                return replace(position, fees=position.fees + fact.fee, cash=position.cash - fact.fee)


def delivery(
    option: Option,
    kind: Delivery,
    contracts: Decimal,
    *,
    at: datetime,
    fact_id: str,
    order_id: UUID,
    fee: Decimal = ZERO,
) -> tuple[Expiry, Fill]:
    """Return what exercise of long contracts or assignment of short ones does: the option goes, the underlying comes.

    The policy of the premium: it is realised with the option, which closes at zero; the underlying opens (or closes) at
    the strike and does not take it into its cost. Raises BadFact for an adjusted contract, whose delivery only the
    venue knows.
    """
    if option.adjusted or not contracts.is_finite() or contracts <= 0:
        raise BadFact("an adjusted contract delivers what its venue says; contracts are above zero", id=fact_id)
    buys = (option.right == "C") == (kind == "exercised")
    shares = Fill(
        id=f"{fact_id}/shares",
        order_id=order_id,
        instrument=Equity(option.underlying),
        side="buy" if buys else "sell",
        quantity=contracts * option.multiplier,
        price=option.strike,
        at=at,
        fee=fee,
    )
    return Expiry(f"{fact_id}/option", option, at, contracts), shares


def _filled(position: Position, fill: Fill) -> Position:
    if not (fill.quantity.is_finite() and fill.price.is_finite() and fill.quantity > 0 and fill.price >= 0):
        raise BadFact("a fill has a quantity above zero and a price", id=fill.id)
    signed = fill.quantity if fill.side == "buy" else -fill.quantity
    after = _traded(position, signed, fill.price, fill.id, fill.at)
    fee = fill.fee
    if fill.fee_quantity:  # taken in what is traded: as if that much were sold at the fill's price and paid as the fee
        fee += fill.fee_quantity * fill.price * fill.instrument.multiplier
        after = _traded(after, -fill.fee_quantity, fill.price, f"{fill.id}/fee", fill.at)
    return replace(after, fees=after.fees + fee, cash=after.cash - fee)


def _expired(position: Position, expiry: Expiry) -> Position:
    held = position.quantity
    if not 0 < expiry.quantity <= abs(held):
        raise BadFact(f"{expiry.quantity} cannot expire of {held}", id=expiry.id)
    return _traded(position, expiry.quantity.copy_sign(-held), expiry.price, expiry.id, expiry.at)


def _traded(position: Position, signed: Decimal, price: Decimal, fact_id: str, at: datetime) -> Position:
    """Close what goes the other way, oldest first; what is left of the trade opens a lot."""
    each = price * position.instrument.multiplier
    held = position.quantity
    closed = _toward_zero(held, signed)
    lots, cost = _close(position.lots, closed)
    average = _share(position.average_cost, closed, held)
    opened = signed + closed
    if opened:
        lots = (*lots, Lot(fact_id, at, opened, opened * each))
    return replace(
        position,
        lots=lots,
        average_cost=position.average_cost - average + opened * each,
        realised_fifo=position.realised_fifo + closed * each - cost,
        realised_average=position.realised_average + closed * each - average,
        cash=position.cash - signed * each,
    )


def _toward_zero(held: Decimal, signed: Decimal) -> Decimal:
    """Return how much of what is held a trade closes, with the sign of what is held."""
    if held * signed >= 0:
        return ZERO
    return min(abs(held), abs(signed)).copy_sign(held)


def _share(whole: Decimal, part: Decimal, of: Decimal) -> Decimal:
    """Return the part's share of a whole, all of it for all."""
    if part == of:
        return whole
    return (whole * part / of).quantize(_SHARE)


def _close(lots: tuple[Lot, ...], closed: Decimal) -> tuple[tuple[Lot, ...], Decimal]:
    """Return the lots that stay when so much is closed of the oldest, and what the closed part had cost."""
    left, cost, kept = closed, ZERO, list[Lot]()
    for lot in lots:
        part = min(abs(left), abs(lot.quantity)).copy_sign(lot.quantity)
        share = _share(lot.cost, part, lot.quantity)
        left, cost = left - part, cost + share
        if part != lot.quantity:
            kept.append(replace(lot, quantity=lot.quantity - part, cost=lot.cost - share))
    return tuple(kept), cost


def _split(position: Position, split: Split) -> Position:
    if not (split.new.is_finite() and split.old.is_finite() and split.new > 0 and split.old > 0):
        raise BadFact("a split is so many new for so many old", id=split.id)
    before = position.quantity
    after = (before * split.new / split.old).quantize(_SHARE)
    wanted = after if split.quantity_after is None else split.quantity_after
    if wanted * before < 0 or (not before and wanted):
        raise BadFact(f"a split does not turn {before} into {wanted}", id=split.id)
    lots = _scaled(position.lots, split, after)
    fraction = after - wanted
    if abs(wanted) > abs(after):  # the venue rounds up: more for the same cost
        lots = (*lots[:-1], replace(lots[-1], quantity=lots[-1].quantity - fraction))
        fraction = ZERO
    lots, cost = _close(lots, fraction)
    average = _share(position.average_cost, fraction, after) if fraction else ZERO
    return replace(
        position,
        lots=lots,
        average_cost=position.average_cost - average,
        realised_fifo=position.realised_fifo + split.cash - cost,
        realised_average=position.realised_average + split.cash - average,
        cash=position.cash + split.cash,
    )


def _scaled(lots: tuple[Lot, ...], split: Split, after: Decimal) -> tuple[Lot, ...]:
    """Return the lots with their new quantities, which add up to `after`; the last one takes what rounding leaves."""
    made = [replace(lot, quantity=(lot.quantity * split.new / split.old).quantize(_SHARE)) for lot in lots]
    if made:
        rest = after - reduce(lambda done, lot: done + lot.quantity, made[:-1], ZERO)
        made[-1] = replace(made[-1], quantity=rest)
    return tuple(made)
