"""What short positions of a paper account tie up: plain and careful, without a margin engine.

    short shares       what was received for them, and as much again
    short calls        nothing where 100 shares each are held, the width of a spread where a long call that does not
                       expire before covers them, else the strike
    short puts         the width where a long put covers them, else the strike

What is long ties up nothing: it is paid. Nothing short is counted as covering anything. Covers are dealt out in a fixed
order, not in the best one, so that the sum may be more than the least possible and never less.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Final

from services.broker.domain.instruments import SHARES_A_CONTRACT, Instrument, Option
from services.broker.domain.orders import ZERO

_COST: Final = Decimal("1e-8")


@dataclass(frozen=True, slots=True)
class Stock:
    """What is held of an instrument, short below zero. `cost` has its sign: of what is short, what was received."""

    instrument: Instrument
    quantity: Decimal = ZERO
    cost: Decimal = ZERO

    def traded(self, signed: Decimal, price: Decimal) -> "Stock":
        """Return what is held after a trade, its cost on average."""
        held, after = self.quantity, self.quantity + signed
        each = price * self.instrument.multiplier
        if held * signed >= 0:
            return Stock(self.instrument, after, self.cost + signed * each)
        if after * held > 0:  # part of it is closed
            return Stock(self.instrument, after, (self.cost * after / held).quantize(_COST, ROUND_HALF_EVEN))
        return Stock(self.instrument, after, after * each)


def collateral(stocks: Iterable[Stock]) -> Decimal:
    """Return what the shorts among the instruments of one underlying tie up."""
    held = [stock for stock in stocks if stock.quantity]
    if all(stock.quantity > 0 for stock in held):
        return ZERO
    shares = sum((stock.quantity for stock in held if not isinstance(stock.instrument, Option)), ZERO)
    received = sum(
        (-stock.cost for stock in held if stock.quantity < 0 and not isinstance(stock.instrument, Option)), ZERO
    )
    options = [(stock.instrument, stock.quantity) for stock in held if isinstance(stock.instrument, Option)]
    calls = [(of, quantity) for of, quantity in options if of.right == "C"]
    puts = [(of, quantity) for of, quantity in options if of.right == "P"]
    return 2 * received + _spreads(calls, max(shares, ZERO) // SHARES_A_CONTRACT) + _spreads(puts, ZERO)


def _spreads(options: list[tuple[Option, Decimal]], covered: Decimal) -> Decimal:
    """Return what short options of one right tie up, where so many are covered by shares."""
    tied = ZERO
    longs = sorted((of for of, quantity in options if quantity > 0), key=lambda of: (of.strike, of.key))
    left = {of.key: quantity for of, quantity in options if quantity > 0}
    for short, quantity in sorted(options, key=lambda one: (one[0].strike, one[0].key)):
        naked = -quantity
        if naked <= 0:
            continue
        by_shares = min(naked, covered)
        naked, covered = naked - by_shares, covered - by_shares
        for long in longs:
            part = min(naked, left[long.key])
            away = long.strike - short.strike if short.right == "C" else short.strike - long.strike
            if part > 0 and long.expires_on >= short.expires_on and away < short.strike:
                tied += part * max(away, ZERO) * SHARES_A_CONTRACT
                naked, left[long.key] = naked - part, left[long.key] - part
        tied += naked * short.strike * SHARES_A_CONTRACT
    return tied
