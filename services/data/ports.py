"""What the pollers need from a source.

Of chains there are three: Cboe, recorded answers, the simulator; of quotes of crypto pairs two: Alpaca, the simulator.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from services.data.domain.chain import Quote, Snapshot, Validators
from services.data.domain.pairs import PairQuote
from shared.contracts.data import Source
from shared.errors import Transient


class UnusableAnswer(Transient):
    """The source answered with something that cannot be used; the last good answer stays."""

    code = "UNUSABLE_ANSWER"


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The source has nothing newer than what the caller's validators describe."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The source will never have anything again."""


@dataclass(frozen=True, slots=True)
class QuoteFeed:
    """Quotes of underlyings more often than chains: `take(symbol)` every `every_s` seconds."""

    every_s: float
    take: Callable[[str], Quote]


class ChainSource(Protocol):
    """Where chains come from.

    `delay_s` is how far it is behind the market by its own statement; `poll_every_s` how often asking makes
    sense; `quotes` is None when quotes come with chains only. Sources raise, translated from their own
    errors: Invalid for a symbol outside the grammar, NotFound for one they do not know, Transient when asking
    again may help (UnusableAnswer among them), Permanent when it cannot.
    """

    @property
    def name(self) -> Source:
        """What the chain's `source` field says."""
        ...

    @property
    def delay_s(self) -> float:
        """Seconds behind the market."""
        ...

    @property
    def poll_every_s(self) -> float:
        """Seconds from one round over all symbols to the next."""
        ...

    @property
    def quotes(self) -> QuoteFeed | None:
        """The quote stream, where there is one."""
        ...

    def offers(self, symbols: Sequence[str]) -> tuple[str, ...]:
        """Return which symbols to ask for, given those that are configured."""
        ...

    def opens_in_s(self, now: datetime) -> float:
        """Return 0 while asking makes sense, else the seconds until the source's next session."""
        ...

    async def fetch(self, symbol: str, known: Validators) -> Snapshot | Unchanged | Ended:
        """Return the newest chain of `symbol`, unless it is the one that `known` describes."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class PairQuotes:
    """Quotes of pairs as a source told them. `dropped` counts faulty ones by reason; what it lacks is left out."""

    quotes: Sequence[PairQuote]
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])


class PairSource(Protocol):
    """Where quotes of crypto pairs come from; all that are asked for at once.

    Raises Invalid where it refuses the request for one of the pairs in it, Transient when asking again may help, and
    Permanent when it cannot.
    """

    @property
    def name(self) -> str:
        """What the quotes' `source` says."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether no market says so."""
        ...

    @property
    def every_s(self) -> float:
        """Seconds from one round to the next."""
        ...

    async def quotes(self, pairs: Sequence[str]) -> PairQuotes:
        """Return the newest quotes of pairs."""
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...
