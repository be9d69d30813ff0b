"""What a frame of Alpaca's stream says of an order of ours.

A `trade_bust` takes an execution back, a `trade_correct` puts another one in its place; `previous_execution_id` names
the old one, where it is not `execution_id` itself. The order's sums are without it from then on.

What would surprise you: a multi-leg order's legs are orders with ids of their own, which no frame of a leg connects
with the order that it belongs to. So what was told of the order before, by any call, is kept for that.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from services.broker.adapters.alpaca.reading import kind_of, legs_of, moment, number, our_id, totals
from services.broker.domain.orders import Cumulative, Execution, Order, Report, VenueKind
from services.broker.ports import Update

Json = Any

_FILLS: Final[Mapping[str, VenueKind]] = {"fill": "filled", "partial_fill": "fill"}
_AMENDS: Final = frozenset({"trade_bust", "trade_correct"})
_KINDS: Final[Mapping[str, VenueKind]] = {
    **_FILLS,
    "order_cancel_rejected": "cancel_rejected",
    "order_replace_rejected": "replace_rejected",
}
"""Events that say more than the order's status does; every other one, the unknown ones too, is as the status says."""
_MOST_LEGS: Final = 10_000


class Updates:
    """Reads frames, and knows the legs of orders that were told of."""

    def __init__(self) -> None:
        self._legs: dict[str, tuple[UUID, int]] = {}

    def places(self, told: Json, order: Order | None = None) -> dict[str, int]:
        """Return which leg of ours each of the venue's order ids is: by what is traded where we know our order.

        Else as it was known before, else by position: Alpaca tells legs in the order in which they were sent.
        """
        legs = legs_of(told)
        if told.get("order_class") != "mleg":
            return {told["id"]: 0}
        if order is None:
            found = {one["id"]: self._legs.get(one["id"], (None, at))[1] for at, one in enumerate(legs)}
        else:
            of = {leg.instrument.key: at for at, leg in enumerate(order.terms.legs)}
            found = {one["id"]: of[one["symbol"]] for one in legs}
        mine = our_id(told) if order is None else order.id
        if mine is not None:
            self._legs |= {name: (mine, at) for name, at in found.items()}
        while len(self._legs) > _MOST_LEGS:
            self._legs.pop(next(iter(self._legs)))
        return found

    def read(self, frame: Json) -> Update | None:
        """Return what a frame tells; None for somebody else's order."""
        told, event = frame["order"], frame["event"]
        if (leg := self._legs.get(told["id"])) is not None:
            return self._of_leg(frame, *leg)
        mine = our_id(told)
        if mine is None:
            return None
        several = told.get("order_class") == "mleg"
        # The whole's own quantity and price are those of its net: the legs' own frames and a look-up tell executions.
        executions = () if several else _executions(frame, 0)
        return Update(
            mine,
            Report(
                _KINDS.get(event) or kind_of(told),
                executions,
                totals(told, self.places(told)),
                venue_order_id=told["id"],
                reason=frame.get("reason") or None,
            ),
        )

    def _of_leg(self, frame: Json, mine: UUID, index: int) -> Update | None:
        """Return what a leg was filled with; how the whole order stands its own frames tell."""
        executions = _executions(frame, index)
        if not executions:
            return None
        told = frame["order"]
        sums = Cumulative(
            number(told["filled_qty"]), number(told["filled_avg_price"]), moment(told["updated_at"]), index
        )
        return Update(mine, Report("fill", executions, (sums,)))


def _executions(frame: Json, index: int) -> tuple[Execution, ...]:
    """Return the execution that a frame tells, and the one that it takes back."""
    event = frame["event"]
    if event in _FILLS:
        name = frame["execution_id"]
        if not isinstance(name, str) or not name:
            raise ValueError("a fill without an execution id")
        return (_execution(frame, name, index),)
    if event not in _AMENDS or not isinstance(name := frame.get("execution_id"), str):
        return ()
    told, old = _execution(frame, name, index), frame.get("previous_execution_id") or name
    if event == "trade_bust":
        return (replace(told, id=str(old), busted=True),)
    return (told,) if old == name else (replace(told, id=str(old), busted=True), told)


def _execution(frame: Json, name: str, index: int) -> Execution:
    return Execution(name, number(frame["qty"]), number(frame["price"]), moment(frame["timestamp"]), index)
