"""What an order is, what is told of it, and what follows from that. How one becomes the next: `lifecycle`.

    new               stored, nothing was sent; or it was sent, and a look-up has shown that it never arrived
    pending_submit    being sent, or sent and not answered
    accepted          works at the venue
    partially_filled  works, and some of it is filled
    pending_cancel    works, and we want it canceled
    unknown           sent, and nobody knows what became of it, until a look-up's answer
    filled, canceled, replaced, rejected, expired   over; a fill that comes later still counts

An order has one leg or several; `quantity` counts units of the whole, each leg fills `ratio` times that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, get_args
from uuid import UUID, uuid5

from services.broker.domain.instruments import Instrument
from shared.contracts.broker import OrderClass, OrderType, Side, Strategy, TimeInForce
from shared.contracts.broker import OrderState as State

OurKind = Literal["submit_sent", "not_sent", "outcome_unknown", "refused", "cancel_asked", "replace_asked"]
VenueKind = Literal[
    "accepted",
    "fill",
    "filled",
    "canceled",
    "replaced",
    "rejected",
    "expired",
    "cancel_rejected",
    "replace_rejected",
    "not_found",
]
Kind = OurKind | VenueKind
AnomalyCode = Literal[
    "OVERFILL",
    "LATE_FILL",
    "UNSENT",
    "FILLS_MISSING",
    "EXECUTION_DISAGREES",
    "BAD_FILL",
    "VANISHED",
    "STILL_WORKS",
    "TRADE_BUSTED",
]

STATES: Final[tuple[State, ...]] = get_args(State)
OURS: Final[tuple[OurKind, ...]] = get_args(OurKind)
VENUES: Final[tuple[VenueKind, ...]] = get_args(VenueKind)
OVER: Final[frozenset[State]] = frozenset({"filled", "canceled", "replaced", "rejected", "expired"})
WORKING: Final[frozenset[State]] = frozenset({"accepted", "partially_filled", "pending_cancel"})
ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True)
class Leg:
    """One instrument of an order."""

    instrument: Instrument
    side: Side
    ratio: int = 1
    opens: bool | None = None  # to open or to close; None lets the venue decide


@dataclass(frozen=True, slots=True)
class Exits:
    """What a bracket sends when its entry is filled; of an OCO, its two halves."""

    take_profit: Decimal
    stop_loss: Decimal
    stop_loss_limit: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked for. `quantity`, or in its place `notional` in the quote currency; one of both is None."""

    legs: tuple[Leg, ...]
    type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal | None = None
    notional: Decimal | None = None
    limit: Decimal | None = None  # of several legs the net of one unit: above zero is paid, below zero received
    stop: Decimal | None = None
    trail_amount: Decimal | None = None
    trail_percent: Decimal | None = None
    order_class: OrderClass = "simple"
    strategy: Strategy | None = None  # what several legs are meant to be, so that they can be held to it
    exits: Exits | None = None
    extended_hours: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """One fill of one leg, as the venue tells it. `fee` is in the quote currency, `fee_quantity` in what is traded.

    One that is `busted` the venue has taken back: it counts no more, however often it is told again. A corrected one is
    busted, and another one stands in its place.
    """

    id: str
    quantity: Decimal
    price: Decimal
    at: datetime
    leg: int = 0
    fee: Decimal = ZERO
    fee_quantity: Decimal = ZERO
    busted: bool = False


@dataclass(frozen=True, slots=True)
class Cumulative:
    """What is filled of a leg in all, at which average price."""

    quantity: Decimal
    average_price: Decimal
    at: datetime
    leg: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What a venue says of an order, or what we did. `looked_up` marks the answer to a look-up by the order's id."""

    kind: Kind
    executions: tuple[Execution, ...] = ()
    cumulative: tuple[Cumulative, ...] = ()
    looked_up: bool = False
    venue_order_id: str | None = None
    replaced_by: UUID | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """An order; its id is the client order id at the venue."""

    id: UUID
    account_id: UUID
    venue: str
    terms: Terms
    state: State = "new"
    submits: int = 0  # how often it was sent
    seen: bool = False  # the venue has told of it
    said_filled: bool = False
    cancel_wanted: bool = False
    venue_order_id: str | None = None
    replaces: UUID | None = None
    replaced_by: UUID | None = None  # asked for, and once `replaced` done
    reason: str | None = None
    executions: Mapping[tuple[int, str], Execution] = field(default_factory=dict[tuple[int, str], Execution])
    cumulative: Mapping[int, Cumulative] = field(default_factory=dict[int, Cumulative])  # the greatest, by leg


@dataclass(frozen=True, slots=True)
class Fill:
    """What moved a position. A provisional one follows from a cumulative quantity whose executions are unknown yet."""

    id: str
    order_id: UUID
    instrument: Instrument
    side: Side
    quantity: Decimal
    price: Decimal
    at: datetime
    fee: Decimal = ZERO
    fee_quantity: Decimal = ZERO
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class StateChanged:
    """It is something else now."""

    before: State
    after: State


@dataclass(frozen=True, slots=True)
class FillBooked:
    """It counts."""

    fill: Fill


@dataclass(frozen=True, slots=True)
class FillWithdrawn:
    """A fill counts no more: a provisional one is known better now, any other was busted."""

    fill: Fill


@dataclass(frozen=True, slots=True)
class Anomaly:
    """It was taken, and a person should look at it."""

    code: AnomalyCode
    message: str


@dataclass(frozen=True, slots=True)
class IllegalTransition:
    """The state did not follow the report. Fills that came with it count all the same."""

    state: State
    kind: Kind
    message: str


Fact = StateChanged | FillBooked | FillWithdrawn | Anomaly | IllegalTransition


def derived_id(cause: UUID, ordinal: int) -> UUID:
    """Return the id of an order that follows from another fact, the same whenever it is derived again."""
    return uuid5(cause, f"order:{ordinal}")
