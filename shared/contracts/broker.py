"""What the brokerage is asked to do, and what it tells: orders as they go, fills, positions."""

from decimal import Decimal
from typing import Annotated, ClassVar, Final, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.contracts.base import Event
from shared.contracts.topics import BROKER_COMMANDS, BROKER_ORDERS, BROKER_POSITIONS, Topic

Side = Literal["buy", "sell"]
OrderType = Literal["market", "limit", "stop", "stop_limit", "trailing_stop"]
TimeInForce = Literal["day", "gtc", "ioc", "fok", "opg", "cls"]
OrderClass = Literal["simple", "bracket", "oco", "multi_leg"]
Strategy = Literal["vertical", "calendar", "straddle", "strangle"]
OrderState = Literal[
    "new",
    "pending_submit",
    "accepted",
    "partially_filled",
    "filled",
    "pending_cancel",
    "canceled",
    "replaced",
    "rejected",
    "expired",
    "unknown",
]
_TOO_LARGE: Final = Decimal("1e15")
Amount = Annotated[Decimal, Field(allow_inf_nan=False, gt=-_TOO_LARGE, lt=_TOO_LARGE)]
"""What can be reckoned with: 1e9999999 is finite, too."""


class LegTerms(BaseModel):
    """One instrument of an order: AAPL, an OCC symbol, or a pair such as BTC/USD."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbol: str = Field(min_length=1, max_length=32)
    side: Side
    ratio: int = Field(default=1, ge=1, le=100)
    opens: bool | None = None
    underlying: str | None = None


class ExitTerms(BaseModel):
    """The two ways out of a position: a bracket's, once its entry is filled, and an OCO's, for what is held."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    take_profit: Amount
    stop_loss: Amount
    stop_loss_limit: Amount | None = None


class OrderTerms(BaseModel):
    """What is asked for. One of `quantity` and `notional` (in the quote currency); prices as the type needs them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    legs: tuple[LegTerms, ...] = Field(min_length=1, max_length=8)
    type: OrderType
    time_in_force: TimeInForce = "day"
    quantity: Amount | None = None
    notional: Amount | None = None
    limit: Amount | None = None
    stop: Amount | None = None
    trail_amount: Amount | None = None
    trail_percent: Amount | None = None
    order_class: OrderClass = "simple"
    strategy: Strategy | None = None
    exits: ExitTerms | None = None
    extended_hours: bool = False


class _Command(Event):
    topic: ClassVar[Topic] = BROKER_COMMANDS

    account_id: UUID
    user_id: UUID  # who asks; an account of somebody else's is not touched

    @property
    def key(self) -> str:
        """The account."""
        return str(self.account_id)


class OrderRequested(_Command):
    """Somebody wants an order placed. Its id is the order's, chosen by who asks, so that asking twice is one order."""

    type: ClassVar[str] = "broker.order.requested.v1"

    order_id: UUID
    terms: OrderTerms


class ReplaceRequested(_Command):
    """Somebody wants a working order replaced by another one; what is not given stays as it is."""

    type: ClassVar[str] = "broker.replace.requested.v1"

    order_id: UUID
    by_order_id: UUID
    quantity: Amount | None = None
    limit: Amount | None = None
    stop: Amount | None = None
    trail_amount: Amount | None = None
    trail_percent: Amount | None = None


class CancelRequested(_Command):
    """Somebody wants an order canceled; all that are not over when none is named."""

    type: ClassVar[str] = "broker.cancel.requested.v1"

    order_id: UUID | None = None


class CloseRequested(_Command):
    """Somebody wants a position closed at the market: working orders of it are canceled first."""

    type: ClassVar[str] = "broker.close.requested.v1"

    order_id: UUID  # of the order that closes it
    symbol: str


class _AccountFact(Event):
    account_id: UUID
    user_id: UUID

    @property
    def key(self) -> str:
        """The account."""
        return str(self.account_id)


class _OrderFact(_AccountFact):
    topic: ClassVar[Topic] = BROKER_ORDERS

    order_id: UUID
    venue: str
    mode: Literal["paper", "live"]


class OrderChanged(_OrderFact):
    """An order as it is now. A lower version than one seen before is old news."""

    type: ClassVar[str] = "broker.order.changed.v1"

    version: int
    state: OrderState
    terms: OrderTerms
    filled: Decimal  # units of the whole
    parent: UUID | None = None  # of an exit: the bracket or the OCO that it is of
    venue_order_id: str | None = None
    replaces: UUID | None = None
    replaced_by: UUID | None = None
    reason: str | None = None


class OrderRejected(_OrderFact):
    """An order does not go out, or its venue refused it. Each code says what to change."""

    type: ClassVar[str] = "broker.order.rejected.v1"

    codes: tuple[str, ...]
    reasons: tuple[str, ...]


class OrderFilled(_OrderFact):
    """Part of an order, or all of it, was filled. Prices and fees in the quote currency.

    Of a venue that tells totals only, it comes when the order ends, for all that no execution was told of.
    """

    type: ClassVar[str] = "broker.order.filled.v1"

    fill_id: str
    symbol: str
    side: Side
    quantity: Decimal
    price: Decimal
    fee: Decimal
    at: AwareDatetime
    whole: bool  # nothing is left to be filled
    filled: Decimal | None = None  # of the leg, with this
    average_price: Decimal | None = None  # of all that


class OrderFlagged(_OrderFact):
    """Something about an order cannot be, or should not: a person looks at it."""

    type: ClassVar[str] = "broker.order.flagged.v1"

    code: str
    message: str


class PositionChanged(_AccountFact):
    """What is held of an instrument now: above zero long, below zero short. Sums in the quote currency."""

    type: ClassVar[str] = "broker.position.changed.v1"
    topic: ClassVar[Topic] = BROKER_POSITIONS

    version: int
    symbol: str
    quantity: Decimal
    average_price: Decimal | None
    realised_fifo: Decimal
    realised_average: Decimal
    fees: Decimal


class Drift(BaseModel):
    """What we believed to be held, and what the venue says."""

    model_config = ConfigDict(frozen=True)

    symbol: str
    ours: Decimal
    venue: Decimal


class PositionsDrifted(_AccountFact):
    """Positions were not what the venue says, and were mended: it is right."""

    type: ClassVar[str] = "broker.positions.drifted.v1"
    topic: ClassVar[Topic] = BROKER_POSITIONS

    venue: str
    drifts: tuple[Drift, ...]
