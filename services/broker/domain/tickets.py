"""What the paper venue keeps: accounts' money, what they hold, their orders, what they are told. See `desk`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal
from uuid import UUID

from services.broker.domain.checks import AssetClass, Capabilities
from services.broker.domain.margin import Stock
from services.broker.domain.matching import Model, Working
from services.broker.domain.orders import ZERO, Report, TimeInForce

Hours = Callable[[datetime], tuple[datetime, datetime]]
"""The session (from, until) that is open at a moment, or else the next one."""

State = Literal["pending", "accepted", "filled", "canceled", "replaced", "rejected", "expired", "void"]
"""An order's; `pending` is to replace another one that still works, `void` never came to that."""

WORKING: Final = frozenset({"accepted", "pending"})
TIMES: Final[Mapping[AssetClass, frozenset[TimeInForce]]] = {
    "equity": frozenset({"day", "gtc", "ioc", "fok"}),
    "option": frozenset({"day", "gtc", "ioc", "fok"}),
    "crypto": frozenset({"gtc", "ioc", "fok"}),
}
CAPABILITIES: Final = Capabilities(
    "paper",
    frozenset({"market", "limit", "stop", "stop_limit", "trailing_stop"}),
    TIMES,
    frozenset({"simple", "multi_leg"}),
    frozenset({"equity", "crypto"}),
)


def venue_id(order_id: UUID) -> str:
    """Return the venue's own id of an order."""
    return f"P-{order_id.hex}"


@dataclass(slots=True)
class Purse:
    """An account's money. `tied` is what its short positions tie up, `on_hold` what its working orders do."""

    id: UUID
    cash: Decimal
    tied: Decimal = ZERO
    on_hold: Decimal = ZERO
    frames: int = 0  # how many it was told

    @property
    def buying_power(self) -> Decimal:
        """What may still be spent."""
        return self.cash - self.tied - self.on_hold


@dataclass(slots=True)
class Holding:
    """What an account holds of an instrument, and what its working orders may still buy and sell of it."""

    stock: Stock
    buying: Decimal = ZERO
    selling: Decimal = ZERO


@dataclass(slots=True)
class Ticket:
    """An order at the venue."""

    id: UUID
    account_id: UUID
    working: Working
    came_at: datetime
    works_at: datetime
    updated_at: datetime
    state: State = "accepted"
    expires_at: datetime | None = None
    ends_at: datetime | None = None  # when its cancellation takes effect
    replaces: UUID | None = None
    replaced_by: UUID | None = None
    reason: str | None = None
    expected: Decimal = ZERO  # units; of a notional what it would buy at worst
    needs: Decimal = ZERO  # buying power, were nothing of it filled yet
    open: Decimal = ZERO  # units that are counted as still to be filled
    hold: Decimal = ZERO  # buying power that is counted for them
    count: int = 0  # of its executions; while it is pending, of those that the order has that it replaces

    @property
    def due_at(self) -> datetime | None:
        """When the clock next has to do with it."""
        if self.state not in WORKING:
            return None
        moments = (self.works_at, self.ends_at, self.expires_at)
        return min((moment for moment in moments if moment is not None and moment > self.updated_at), default=None)


@dataclass(frozen=True, slots=True)
class Frame:
    """What an account is told of an order; numbered by account without gaps."""

    account_id: UUID
    number: int
    order_id: UUID
    report: Report


@dataclass(frozen=True, slots=True)
class Rules:
    """How the desk works, the same for all accounts."""

    hours: Hours
    model: Model = field(default_factory=Model)
    seed: int = 0
    halted: Mapping[str, str] = field(default_factory=dict[str, str])  # what is not traded, and why
