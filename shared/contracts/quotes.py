"""What the data service tells of underlyings and crypto pairs: their quotes.

They stand apart from chains (data.py), which need pyarrow: 40 MB that a service without chains does without.
"""

from decimal import Decimal
from typing import ClassVar, Literal

from pydantic import AwareDatetime

from shared.contracts.base import Event
from shared.contracts.topics import PAIRS, QUOTES, Topic

Source = Literal["cboe", "replay", "simulator"]


class QuoteTaken(Event):
    """The underlying's quote at one moment. Prices in USD a share."""

    type: ClassVar[str] = "data.quote.taken.v1"
    topic: ClassVar[Topic] = QUOTES

    symbol: str
    as_of: AwareDatetime
    source: Source
    simulated: bool
    close: float | None
    bid: float | None
    ask: float | None

    @property
    def key(self) -> str:
        """The symbol."""
        return self.symbol


class PairQuoted(Event):
    """The best bid and ask of a crypto pair at one moment, in what its symbol names second."""

    type: ClassVar[str] = "data.pair.quoted.v1"
    topic: ClassVar[Topic] = PAIRS

    symbol: str  # BTC/USD
    as_of: AwareDatetime
    source: str
    simulated: bool
    bid: Decimal
    ask: Decimal

    @property
    def key(self) -> str:
        """The pair."""
        return self.symbol
