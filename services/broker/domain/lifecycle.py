"""How an order becomes the next: `apply(order, report)` returns the new order and the facts. Nothing is raised.

First its fills, which always count: executions once by their id, cumulative quantities as their greatest. Both only
grow, and so does what is busted of them, so whatever the order and however often the same reports come, the same fills
result. Fills may move the state, even out of one that is over; what is busted leaves it as it is. Then the report
itself moves the state by the table below, or is recorded as illegal.

What would surprise you: nothing but an answer to a look-up leaves `unknown`. What a stream tells meanwhile is kept and
its fills count, but a stream may have gaps, so the state waits for the answer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Context, Decimal, localcontext
from typing import Final, Literal

from services.broker.domain.orders import (
    OURS,
    OVER,
    WORKING,
    ZERO,
    Anomaly,
    Cumulative,
    Execution,
    Fact,
    Fill,
    FillBooked,
    FillWithdrawn,
    IllegalTransition,
    Kind,
    Order,
    Report,
    State,
    StateChanged,
)

Move = State | Literal["works", "same"]

_EXACT: Final = Context(prec=60)
_PRICE: Final = Decimal("1e-18")
_AVERAGE: Final = Decimal("1e-8")
_UNSENT: Final[frozenset[State]] = frozenset({"new", "pending_submit"})
_OURS: Final[frozenset[Kind]] = frozenset(OURS)
_TELLS_NOTHING: Final[frozenset[Kind]] = frozenset((*OURS, "not_found", "cancel_rejected", "replace_rejected"))
"""Kinds after which we do not know that the venue has the order."""


def _ends(as_state: State) -> dict[State, Move]:
    moves: dict[State, Move] = dict.fromkeys((*_UNSENT, *WORKING, "unknown", as_state), as_state)
    return moves


def _same(*states: State) -> dict[State, Move]:
    moves: dict[State, Move] = dict.fromkeys(states, "same")
    return moves


_ACCEPTED: Final[Mapping[State, Move]] = {
    "new": "works",
    "pending_submit": "works",
    "unknown": "works",
    **_same(*WORKING, *OVER),  # a frame that was overtaken
}
_MOVES: Final[Mapping[Kind, Mapping[State, Move]]] = {
    "submit_sent": {"new": "pending_submit"},
    "not_sent": {"pending_submit": "new"},
    "outcome_unknown": {"pending_submit": "unknown", **_same(*WORKING, *OVER, "unknown")},  # the stream was faster
    "refused": {"new": "rejected"},
    "cancel_asked": {
        "new": "canceled",
        "accepted": "pending_cancel",
        "partially_filled": "pending_cancel",
        **_same("pending_submit", "unknown", "pending_cancel"),
    },
    "replace_asked": _same("accepted", "partially_filled"),
    "accepted": _ACCEPTED,
    "fill": _ACCEPTED,
    "filled": {state: move for state, move in _ACCEPTED.items() if state not in OVER or state == "filled"},
    "canceled": {**_ends("canceled"), "rejected": "same"},  # one that was given up arrived after all, and is ended
    "expired": _ends("expired"),
    "replaced": _ends("replaced"),
    "rejected": {state: move for state, move in _ends("rejected").items() if state != "partially_filled"},
    "cancel_rejected": {"pending_cancel": "works", **_same("accepted", "partially_filled", *OVER)},
    "replace_rejected": _same(*WORKING, *OVER),
    "not_found": {"unknown": "new", **dict.fromkeys(WORKING, "unknown"), **_same(*OVER, "new")},
}
"""What a report makes of a state that its fills have not moved; a state that is not named is illegal."""


@dataclass(frozen=True, slots=True)
class Step:
    """The order after a report, and what happened."""

    order: Order
    facts: tuple[Fact, ...]


def apply(order: Order, report: Report) -> Step:
    """Return what the report makes of the order."""
    with localcontext(_EXACT):
        taken, problems = _take(order, report)
        moved, late = _moved_by_fills(order, taken)
        ended, refused = _moved_by_report(moved, report)
        facts: list[Fact] = [*_fill_facts(order, ended), *problems, *late, *refused]
        if ended.state != order.state:
            facts.append(StateChanged(order.state, ended.state))
        return Step(ended, tuple(facts))


# Quantities


def fills(order: Order) -> tuple[Fill, ...]:
    """Return the fills that count now: the executions, and a provisional one for each leg where some are missing."""
    found = [_of_execution(order, one) for one in order.executions.values() if not one.busted]
    with localcontext(_EXACT):
        missing = [_provisional(order, one) for one in order.cumulative.values()]
    return tuple(sorted([*found, *(one for one in missing if one is not None)], key=lambda fill: (fill.at, fill.id)))


def leg_filled(order: Order, leg: int) -> Decimal:
    """Return what is filled of a leg, in its own units."""
    busted = sum((one.quantity for one in order.executions.values() if one.leg == leg and one.busted), ZERO)
    return _leg_told(order, leg) - busted


def _leg_told(order: Order, leg: int) -> Decimal:
    """Return what was told to be filled of a leg, with what was busted since."""
    known = sum((one.quantity for one in order.executions.values() if one.leg == leg), ZERO)
    told = order.cumulative.get(leg)
    return known if told is None else max(known, told.quantity)


def filled(order: Order) -> Decimal:
    """Return how many units of the whole are filled: as many as every leg allows."""
    with localcontext(_EXACT):
        return min(leg_filled(order, index) / leg.ratio for index, leg in enumerate(order.terms.legs))


def is_whole(order: Order) -> bool:
    """Return whether all of it is filled. Of an order by notional only its venue can say so."""
    if order.terms.quantity is None:
        return order.said_filled and filled(order) > 0
    return filled(order) >= order.terms.quantity


def _is_told(order: Order) -> bool:
    """Return whether all that the venue says was filled is known, with what was busted since."""
    quantity = order.terms.quantity or ZERO
    return all(_leg_told(order, index) >= quantity * leg.ratio for index, leg in enumerate(order.terms.legs))


def average_price(order: Order, symbol: str) -> tuple[Decimal, Decimal]:
    """Return how much of an instrument an order has filled, and at which price on average; zeros for nothing."""
    found = [one for one in fills(order) if one.instrument.key == symbol]
    with localcontext(_EXACT):
        quantity = sum((one.quantity for one in found), ZERO)
        value = sum((one.quantity * one.price for one in found), ZERO)
        return quantity, (value / quantity).quantize(_AVERAGE) if quantity else ZERO


def overfilled(order: Order) -> Decimal:
    """Return by how much the legs are filled beyond what was asked for, together."""
    quantity = order.terms.quantity
    if quantity is None:
        return ZERO
    beyond = (leg_filled(order, index) - quantity * leg.ratio for index, leg in enumerate(order.terms.legs))
    return sum((one for one in beyond if one > 0), ZERO)


def _any_filled(order: Order) -> bool:
    return bool(order.executions) or any(one.quantity > 0 for one in order.cumulative.values())


def _of_execution(order: Order, one: Execution) -> Fill:
    leg = order.terms.legs[one.leg]
    fill_id = f"{order.id}/{one.leg}/{one.id}"
    return Fill(fill_id, order.id, leg.instrument, leg.side, one.quantity, one.price, one.at, one.fee, one.fee_quantity)


def _provisional(order: Order, told: Cumulative) -> Fill | None:
    """Return what a cumulative quantity says beyond the executions of its leg, at the price that is left for it."""
    known = [one for one in order.executions.values() if one.leg == told.leg]
    quantity = sum((one.quantity for one in known), ZERO)
    missing = told.quantity - quantity
    if missing <= 0:
        return None
    value = told.quantity * told.average_price - sum((one.quantity * one.price for one in known), ZERO)
    # An execution that the total does not include yet would leave nonsense: then the average is the better guess.
    price = (value / missing).quantize(_PRICE) if value > 0 else told.average_price
    leg = order.terms.legs[told.leg]
    fill_id = f"{order.id}/{told.leg}/cumulative/{quantity.normalize():f}-{told.quantity.normalize():f}"
    return Fill(fill_id, order.id, leg.instrument, leg.side, missing, price, told.at, provisional=True)


def _take(order: Order, report: Report) -> tuple[Order, list[Fact]]:
    """Return the order with the report's executions and totals, and what is wrong with them."""
    executions, cumulative = dict(order.executions), dict(order.cumulative)
    problems: list[Fact] = []
    for one in report.executions:
        known = executions.get((one.leg, one.id))
        taken, wrong = _taken(order, known, one)
        problems += wrong
        if taken is not None:
            executions[one.leg, one.id] = taken
    for told in report.cumulative:
        if told.quantity == 0:
            continue
        if problem := _problem(order, told.leg, told.quantity, told.average_price):
            problems.append(Anomaly("BAD_FILL", f"cumulative of leg {told.leg}: {problem}"))
        elif told.leg not in cumulative or _beats(told, cumulative[told.leg]):
            cumulative[told.leg] = told
    return replace(order, executions=executions, cumulative=cumulative), problems


def _taken(order: Order, known: Execution | None, one: Execution) -> tuple[Execution | None, list[Fact]]:
    """Return an execution as it is known from now on, None for one that cannot be, and what is wrong with it."""
    wrong: list[Fact] = []
    if one.busted and not (known and known.busted):
        wrong.append(Anomaly("TRADE_BUSTED", f"execution {one.id} was taken back by the venue"))
    if known is not None and (known.busted or one.busted):
        return replace(known, busted=True), wrong
    if problem := _problem(order, one.leg, one.quantity, one.price):
        return known, [*wrong, Anomaly("BAD_FILL", f"execution {one.id}: {problem}")]
    if known is not None and (known.quantity, known.price) != (one.quantity, one.price):
        message = f"execution {one.id} was {known.quantity} at {known.price}, now {one.quantity} at {one.price}"
        return known, [*wrong, Anomaly("EXECUTION_DISAGREES", message)]
    return known or one, wrong


def _beats(told: Cumulative, known: Cumulative) -> bool:
    """The greatest counts; of equal ones the first told, so that no order of arrival matters."""
    if told.quantity != known.quantity:
        return told.quantity > known.quantity
    return (told.at, told.average_price) < (known.at, known.average_price)


def _problem(order: Order, leg: int, quantity: Decimal, price: Decimal) -> str | None:
    if not 0 <= leg < len(order.terms.legs):
        return f"the order has no leg {leg}"
    if not quantity.is_finite() or quantity <= 0:
        return f"{quantity} is no quantity"
    return None if price.is_finite() and price >= 0 else f"{price} is no price"


def _fill_facts(before: Order, after: Order) -> list[Fact]:
    old, new = {fill.id: fill for fill in fills(before)}, {fill.id: fill for fill in fills(after)}
    withdrawn: list[Fact] = [FillWithdrawn(fill) for fill_id, fill in old.items() if new.get(fill_id) != fill]
    return withdrawn + [FillBooked(fill) for fill_id, fill in new.items() if old.get(fill_id) != fill]


# States


def _works(order: Order) -> State:
    """Return what an order is that works at its venue."""
    if order.cancel_wanted:
        return "pending_cancel"
    return "partially_filled" if _any_filled(order) else "accepted"


def _moved_by_fills(before: Order, after: Order) -> tuple[Order, list[Fact]]:
    grown = [index for index in range(len(after.terms.legs)) if leg_filled(after, index) > leg_filled(before, index)]
    if not grown:
        return after, []
    state, facts = before.state, list[Fact]()
    if state in OVER - {"filled"}:
        facts.append(Anomaly("LATE_FILL", f"a fill came when the order was {state}"))
    if state == "new":
        facts.append(Anomaly("UNSENT", "a fill came of an order that was not sent, or that was not found"))
    if overfilled(after) > overfilled(before):
        facts.append(Anomaly("OVERFILL", f"{overfilled(after)} more than asked for"))
    if state == "unknown":
        return after, facts
    if is_whole(after):
        return replace(after, state="filled"), facts
    if state in _UNSENT | {"accepted", "rejected"}:
        return replace(after, state=_works(after)), facts
    return after, facts


def _moved_by_report(order: Order, report: Report) -> tuple[Order, list[Fact]]:
    kind = report.kind
    seen = order.seen or kind not in _TELLS_NOTHING or _any_filled(order)
    arrived = not order.seen and order.state in {"canceled", "rejected"} and kind in {"accepted", "fill"}
    order = replace(order, seen=seen, venue_order_id=order.venue_order_id or report.venue_order_id)
    if order.state == "unknown" and kind not in _OURS and not report.looked_up:
        return order, []
    if order.state == "unknown" and report.looked_up and kind != "not_found" and is_whole(order):
        order = replace(order, state="filled")
    if refusal := _refusal(order, report):
        return order, [IllegalTransition(order.state, kind, refusal)]
    facts: list[Fact] = []
    if arrived:
        facts.append(Anomaly("STILL_WORKS", f"it arrived at the venue when it was {order.state}: it is canceled there"))
    if kind == "not_found" and order.state in WORKING:
        facts.append(Anomaly("VANISHED", f"the venue does not know an order that was {order.state}"))
    noted = _noted(order, report)
    move = _MOVES[kind][order.state]
    state = noted.state if move == "same" else _works(noted) if move == "works" else move
    if state == "new" and noted.cancel_wanted:
        state = "canceled"
    whole = is_whole(noted) or (kind == "filled" and noted.terms.quantity is not None and _is_told(noted))
    if state in WORKING | {"filled"} and whole:
        state = "filled"
    elif kind == "filled":
        facts.append(Anomaly("FILLS_MISSING", f"the venue says filled, {filled(noted)} is known: look it up"))
    return replace(noted, state=state), facts


def _refusal(order: Order, report: Report) -> str | None:
    """Return why the report cannot be true of the order as it is."""
    kind, state = report.kind, order.state
    if state not in _MOVES[kind]:
        return f"{kind} cannot follow {state}"
    if state == "new" and not order.submits and kind not in _OURS | {"not_found"}:
        return f"{kind}, and the order was never sent"
    if kind == "rejected" and state != "rejected" and _any_filled(order):
        return "rejected, and some of it is filled"
    if kind == "not_found" and not report.looked_up:
        return "not_found is an answer to a look-up"
    if kind == "not_found" and state == "unknown" and order.seen:
        return "not found, and the venue has told of it: a person looks at it"
    return None


def _noted(order: Order, report: Report) -> Order:
    """Return the order with what the report tells beside the state."""
    kind = report.kind
    replaced_by = order.replaced_by
    if kind in {"replace_asked", "replaced"}:
        replaced_by = report.replaced_by or replaced_by
    elif kind == "replace_rejected" and order.state != "replaced":
        replaced_by = None
    return replace(
        order,
        submits=order.submits + (kind == "submit_sent"),
        said_filled=order.said_filled or kind == "filled",
        cancel_wanted=(order.cancel_wanted or kind == "cancel_asked") and kind != "cancel_rejected",
        replaced_by=replaced_by,
        reason=report.reason if report.reason is not None else order.reason,
    )
