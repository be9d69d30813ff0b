"""What the conformance cases need of a venue's stand-in: the venue, and a hand on what is behind it.

A stand-in keeps orders, executions, positions and money as the real venue would, and speaks its recorded shapes.
"""

from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from typing import Literal, Protocol
from uuid import UUID

from services.broker.ports import Adapter, Venue


class Rig(Protocol):
    """A venue over its stand-in. The account starts with 100,000 USD and knows AAPL at 100.00 to 100.02."""

    @property
    def venue(self) -> Venue:
        """The product's side."""
        ...

    def quote(self, symbol: str, bid: Decimal, ask: Decimal) -> None:
        """Move the market. Orders that it meets are not filled by that: see `fill`."""

    async def fill(self, order_id: UUID, quantity: Decimal, price: Decimal) -> str:
        """Fill so much of an order at the venue, and return the execution's id; the stream tells it."""
        ...

    async def bust(self, order_id: UUID, execution_id: str) -> None:
        """Take an execution back; the stream tells it, or the next look-up."""

    async def end(self, order_id: UUID, kind: Literal["canceled", "expired", "rejected"]) -> None:
        """End a working order at the venue; the stream tells it."""

    def refuse_next(self, reason: str) -> None:
        """Let the venue refuse the next order."""

    def lose_next(self, what: Literal["request", "answer"]) -> None:
        """Lose the next write: before the venue has it (5xx, or it hangs), or its answer after it took effect."""

    def limit_next(self, times: int = 1) -> None:
        """Answer the next requests with the venue's rate limit."""

    def hold_cancels(self) -> None:
        """Take the next cancel or replacement as a wish only: its end comes later, with `fill` or `end`."""

    def drop_stream(self) -> None:
        """Cut the stream, and lose what happens until somebody listens again."""

    def lose_frames(self, count: int) -> None:
        """Lose that many of the next frames of the stream without cutting it."""

    async def repeat_fill(self) -> None:
        """Send the last fill's frame once more, under the same execution id."""

    def skew(self, seconds: float) -> None:
        """Let the venue's clock differ from ours."""

    def submits(self) -> list[UUID]:
        """Return the client order id of each submit that took effect at the venue, in order."""
        ...

    async def reopen(self) -> None:
        """Close `venue` and open another in its place over the same stand-in, as a process does that starts again."""


class Rigs(Protocol):
    """Opens rigs of one venue; a row of the conformance table."""

    name: str
    lacks: frozenset[str]
    """The names (of `tests.broker.cases.CASES`) of what the venue cannot do although its capabilities do not say so."""

    @property
    def adapter(self) -> Adapter:
        """Its capabilities and the shape of its secrets count."""
        ...

    def open(self) -> AbstractAsyncContextManager[Rig]:
        """Start the stand-in and open the venue over it; both are gone after the block."""
        ...
