"""What protects a position once it is there: of a bracket and an OCO, what is sent next. Pure.

Both have two ways out, a take-profit and a stop-loss, and only one of them is at the venue at a time: the stop-loss,
from the entry's first fill on. When the market has reached the take-profit, the stop is canceled; once it certainly is,
a limit order for what is left goes in its place, and back again where the market turns. So whatever the venue fills,
and when, both together never close more than there was.

What would surprise you: exits that are refused are tried again for ever, ever more seldom, while there is something to
protect. What ends them is a cancel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final, Literal

from services.broker.domain.lifecycle import filled
from services.broker.domain.orders import OVER, ZERO, Exits, Leg, Order, Terms, TimeInForce
from services.broker.domain.risk import Quote

Aim = Literal["stop_loss", "take_profit"]

FIRST_S: Final = 5.0
LONGEST_S: Final = 900.0
GATHER: Final = timedelta(seconds=5)
"""So long the fills of an entry that still works are gathered for the next stop."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What is known of an entry, or of an OCO, and of the exits that were sent for it, oldest first."""

    exits: Exits
    sells: bool  # the exits
    protected: Decimal  # how much there is to protect, or was
    settled: bool  # it will not be more
    held: Decimal  # of the instrument, in the direction that the exits close
    children: Sequence[tuple[Order, datetime]]  # and when each changed last
    quote: Quote | None  # a fresh one
    ended: bool = False  # somebody wants no exits any more


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now, and when to look again though nothing happens."""

    aim: Aim = "stop_loss"
    cancel: tuple[Order, ...] = ()
    place: Decimal = ZERO
    again_at: datetime | None = None
    over: bool = False


def plan(seen: Watched, now: datetime) -> Plan:
    """Return what to do."""
    works = [one for one, _ in seen.children if one.state not in OVER]
    aim = _aim(seen)
    if seen.ended:
        return Plan(aim, _cancelable(works), over=not works)
    done = sum((filled(one) for one, _ in seen.children), ZERO)
    left = max(min(seen.protected - done, seen.held), ZERO)
    working = sum(((one.terms.quantity or ZERO) - filled(one) for one in works), ZERO)
    wrong = [one for one in works if aim_of(one) != aim]
    if wrong:
        return Plan(aim, _cancelable(wrong))
    if working > left:
        return Plan(aim, _cancelable(works))
    if working == left:
        return Plan(aim, over=seen.settled and not left and not works)
    again_at = _not_before(seen, works)
    if again_at is not None and again_at > now:
        return Plan(aim, again_at=again_at)
    return Plan(aim, place=left - working)


def aim_of(order: Order) -> Aim:
    """Return which of the two an exit is."""
    return "take_profit" if order.terms.type == "limit" else "stop_loss"


def exit_terms(of: Terms, aim: Aim, quantity: Decimal, times: frozenset[TimeInForce]) -> Terms:
    """Return the terms of an exit. It rests as long as the venue lets it: one that ends with the day is sent again."""
    leg, exits = of.legs[0], of.exits
    if exits is None:
        raise ValueError("the order has no exits")
    side = leg.side if of.order_class == "oco" else "sell" if leg.side == "buy" else "buy"
    terms = Terms(
        (Leg(leg.instrument, side, opens=False),), "limit", "gtc" if "gtc" in times else "day", quantity=quantity
    )
    if aim == "take_profit":
        return replace(terms, limit=exits.take_profit)
    if exits.stop_loss_limit is None:
        return replace(terms, type="stop", stop=exits.stop_loss)
    return replace(terms, type="stop_limit", stop=exits.stop_loss, limit=exits.stop_loss_limit)


def sent_as(order: Order) -> Order:
    """Return an order as its venue gets it: no venue is told of exits."""
    if order.terms.exits is None:
        return order
    return replace(order, terms=replace(order.terms, order_class="simple", exits=None))


def _aim(seen: Watched) -> Aim:
    quote, target = seen.quote, seen.exits.take_profit
    if quote is None:
        return "stop_loss"
    reached = quote.bid >= target if seen.sells else 0 < quote.ask <= target
    return "take_profit" if reached else "stop_loss"


def _cancelable(orders: Sequence[Order]) -> tuple[Order, ...]:
    return tuple(one for one in orders if not one.cancel_wanted)


def _not_before(seen: Watched, works: Sequence[Order]) -> datetime | None:
    """Return until when nothing new is sent: after refusals, and while an entry that works fills bit by bit."""
    if not seen.children:
        return None
    last = seen.children[-1][1]
    refused = 0
    for one, _ in reversed(seen.children):
        if one.state != "rejected":
            break
        refused += 1
    if refused:
        return last + timedelta(seconds=min(LONGEST_S, FIRST_S * 2.0 ** min(refused - 1, 20)))
    return last + GATHER if works and not seen.settled else None
