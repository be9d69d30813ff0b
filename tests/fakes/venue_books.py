"""The books of the venue in memory: what it keeps of one account, and how it tells it. The hand on them: `venue`."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, Literal
from uuid import UUID

from services.broker.domain.checks import Capabilities
from services.broker.domain.instruments import Instrument
from services.broker.domain.orders import (
    ZERO,
    Cumulative,
    Execution,
    Order,
    OrderClass,
    OrderType,
    Report,
    TimeInForce,
    VenueKind,
)
from services.broker.domain.positions import PositionFact
from services.broker.ports import Changes, Held, Update
from shared.errors import Transient
from shared.work import OutcomeUnknown

Clock = Callable[[], datetime]

START: Final = Decimal(100_000)
_TYPES: Final[frozenset[OrderType]] = frozenset({"market", "limit", "stop", "stop_limit", "trailing_stop"})
_CLASSES: Final[frozenset[OrderClass]] = frozenset({"simple", "multi_leg"})
_TIMES: Final[frozenset[TimeInForce]] = frozenset({"day", "gtc", "ioc", "fok", "opg", "cls"})
_QUOTES: Final = {
    "AAPL": (Decimal("100.00"), Decimal("100.02")),
    "MSFT": (Decimal("400.00"), Decimal("400.05")),
    "BTC/USD": (Decimal("100.00"), Decimal("100.02")),
}


def wall_clock() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Manner:
    """In which ways a venue differs from others."""

    name: str = "memory"
    knows_ids: bool = True  # else a second submit under an id is a second order
    totals_first: bool = False  # answers and the stream tell cumulative quantities, only look-ups tell executions
    fee_rate: Decimal = ZERO  # of the value of each execution
    tells_quotes: bool = False  # of crypto pairs

    @property
    def capabilities(self) -> Capabilities:
        """All that there is."""
        return Capabilities(
            venue=self.name,
            types=_TYPES,
            times={"equity": _TIMES, "option": _TIMES, "crypto": _TIMES},
            classes=_CLASSES,
            notional=frozenset({"equity", "crypto"}),
            quotes=frozenset({"crypto"}) if self.tells_quotes else frozenset(),
            extended_hours=True,
        )


PLAIN: Final = Manner()


@dataclass(slots=True, eq=False)
class Placed:
    """An order as the venue keeps it. `wish` is a cancel or a replacement that was taken and not carried out yet."""

    order: Order
    venue_order_id: str
    changed_at: datetime
    status: VenueKind = "accepted"
    executions: list[Execution] = field(default_factory=list[Execution])
    wish: Literal["cancel"] | Order | None = None
    replaced_by: UUID | None = None

    @property
    def works(self) -> bool:
        return self.status == "accepted"

    def filled(self, leg: int) -> Decimal:
        return sum((one.quantity for one in self.executions if one.leg == leg and not one.busted), ZERO)

    def is_whole(self) -> bool:
        terms = self.order.terms
        if terms.quantity is None:
            value = sum((one.quantity * one.price for one in self.executions if not one.busted), ZERO)
            return value >= (terms.notional or ZERO)
        return all(self.filled(index) >= terms.quantity * leg.ratio for index, leg in enumerate(terms.legs))

    def totals(self) -> tuple[Cumulative, ...]:
        found: list[Cumulative] = []
        for leg in sorted({one.leg for one in self.executions if not one.busted}):
            done = [one for one in self.executions if one.leg == leg and not one.busted]
            quantity = self.filled(leg)
            value = sum((one.quantity * one.price for one in done), ZERO)
            found.append(Cumulative(quantity, value / quantity, done[-1].at, leg))
        return tuple(found)


class Books:
    """Orders, executions, positions and money of one account, and who listens to it."""

    def __init__(self, manner: Manner, clock: Clock) -> None:
        self.manner = manner
        self.quotes = dict(_QUOTES)
        self.placed: list[Placed] = []
        self.held: dict[str, Held] = {}
        self.cash = START
        self.facts: list[PositionFact] = []
        self.refusal: str | None = None  # of the next order
        self.hold = False  # the next cancel or replacement is a wish only
        self.frames_to_lose = 0
        self.listeners: list[asyncio.Queue[Update | None]] = []
        self.ahead = timedelta()
        self._clock = clock

    def now(self) -> datetime:
        """What the venue takes the time for."""
        return self._clock() + self.ahead

    def submits(self) -> list[UUID]:
        return [one.order.id for one in self.placed]

    def quantity(self, of: Instrument) -> Decimal:
        return self.held[of.key].quantity if of.key in self.held else ZERO

    def move(self, of: Instrument, signed: Decimal, price: Decimal, fee: Decimal = ZERO) -> None:
        """Trade so much at a price."""
        self.held[of.key] = Held(of, self.quantity(of) + signed)
        self.cash -= signed * price * of.multiplier + fee

    def find(self, order_id: UUID) -> Placed:
        """Return the newest order under the id."""
        one = self._newest(order_id)
        assert one is not None, f"the venue has no order {order_id}"
        return one

    # What it does when asked

    def place(self, order: Order) -> Report:
        """Take an order in."""
        if self.manner.knows_ids and order.id in self.submits():
            raise OutcomeUnknown("the venue has seen this client order id")
        reason, self.refusal = self.refusal, None
        if reason is not None:
            return Report("rejected", reason=reason)
        one = Placed(order, f"v{len(self.placed) + 1}", self.now())
        self.placed.append(one)
        return self.tell(one, "accepted").report

    def cancel(self, order: Order) -> Report | None:
        one = self._newest(order.id)
        if one is None:
            return Report("cancel_rejected", reason="no such order")
        if not one.works:
            return self._report(one, one.status, tuple(one.executions), one.totals())
        if self.hold:
            self.hold, one.wish = False, "cancel"
            return None
        return self.finish(one, "canceled").report

    def replace(self, order: Order, by: Order) -> Report | None:
        one = self._newest(order.id)
        reason, self.refusal = self.refusal, None
        if one is None or not one.works:
            reason = "no such order" if one is None else f"it is {one.status}"
        if one is None or reason is not None:
            return Report("replace_rejected", reason=reason)
        if self.hold:
            self.hold, one.wish = False, by
            return None
        return self.put_in_place(one, by)

    def look_up(self, order_id: UUID) -> Report:
        """Tell an order wholly. Two under one id are told as one, which is then filled twice."""
        same = [one for one in self.placed if one.order.id == order_id]
        if not same:
            return Report("not_found", looked_up=True)
        told = next((one for one in same if one.works), same[-1])
        executions = tuple(execution for one in same for execution in one.executions)
        return self._report(told, told.status, executions, told.totals(), looked_up=True)

    def changes(self, since: datetime) -> Changes:
        """Tell what works, and what has changed since then by the venue's own clock."""
        ids = dict.fromkeys(one.order.id for one in self.placed if one.works or one.changed_at >= since)
        orders = [Update(order_id, self.look_up(order_id)) for order_id in ids]
        return Changes(orders, [fact for fact in self.facts if fact.at >= since])

    @asynccontextmanager
    async def listen(self) -> AsyncGenerator[AsyncIterator[Update]]:
        queue: asyncio.Queue[Update | None] = asyncio.Queue()
        self.listeners.append(queue)
        try:
            yield _frames(queue)
        finally:
            if queue in self.listeners:
                self.listeners.remove(queue)

    # How it keeps and tells

    def _newest(self, order_id: UUID) -> Placed | None:
        return next((one for one in reversed(self.placed) if one.order.id == order_id), None)

    def finish(self, one: Placed, kind: VenueKind) -> Update:
        one.status, one.wish, one.changed_at = kind, None, self.now()
        return self.tell(one, kind)

    def put_in_place(self, one: Placed, by: Order) -> Report:
        one.replaced_by = by.id
        told = self.finish(one, "replaced").report
        self.place(by)
        return told

    def tell(self, one: Placed, kind: VenueKind, new: tuple[Execution, ...] = ()) -> Update:
        totals_first = self.manner.totals_first
        told = Update(
            one.order.id,
            self._report(one, kind, () if totals_first else new, one.totals() if totals_first else ()),
        )
        self.send(told)
        return told

    def _report(
        self,
        one: Placed,
        kind: VenueKind,
        executions: tuple[Execution, ...],
        totals: tuple[Cumulative, ...],
        *,
        looked_up: bool = False,
    ) -> Report:
        return Report(kind, executions, totals, looked_up, one.venue_order_id, one.replaced_by)

    def send(self, told: Update) -> None:
        if self.frames_to_lose:
            self.frames_to_lose -= 1
            return
        for queue in self.listeners:
            queue.put_nowait(told)


async def _frames(queue: asyncio.Queue[Update | None]) -> AsyncIterator[Update]:
    while (told := await queue.get()) is not None:
        yield told
    raise Transient("the stream was cut")
