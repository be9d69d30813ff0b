"""A simulated market for machines without a network: chains priced on real daily closes. Every chain says so.

The closes come from Bokeh's sample data (read as a file, for importing it would parse all of it into lists):
AAPL, GOOG, IBM, MSFT and META, which the data set still calls FB. They begin after the last split that the
data set does not adjust for (March 2005) and end in 2013, so prices are those of that time.
`services/data/domain/ simulation.py` says how the clock runs and what is unusual.
"""

import csv
import gzip
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from services.data.domain.chain import Quote, Snapshot, Validators
from services.data.domain.columns import Floats
from services.data.domain.simulation import Moment, Plan, chain_at, moment_of, plan_session, spot_at
from services.data.domain.symbols import parse_symbol
from services.data.ports import Ended, QuoteFeed, Unchanged
from shared.clock import Clock
from shared.contracts.data import ChainHeader, Source
from shared.errors import NotFound
from shared.sessions import Sessions

NAMES: Final = {"AAPL": "AAPL", "FB": "META", "GOOG": "GOOG", "IBM": "IBM", "MSFT": "MSFT"}
"""The data set's name: today's name."""
FIRST_CLOSE: Final = "2005-03-01"


class SimulatorSource:
    """Answers from the seed and the clock alone; two of them with the same seed agree at every moment."""

    name: Source = "simulator"
    delay_s: float = 0.0

    def __init__(
        self,
        *,
        closes: dict[str, Floats],
        sessions: Sessions,
        clock: Clock,
        seed: int,
        unusual: int,
        session_s: float,
        tick_s: float = 1.0,
        poll_every_s: float = 10.0,
    ) -> None:
        self.poll_every_s = poll_every_s
        self.quotes: QuoteFeed | None = QuoteFeed(tick_s, self.quote)
        self._closes = closes
        self._sessions = sessions
        self._clock = clock
        self._seed = seed
        self._unusual = unusual
        self._session_s = session_s
        self._tick_s = tick_s
        self._plans: dict[str, Plan] = {}

    def offers(self, symbols: Sequence[str]) -> tuple[str, ...]:
        """Return the configured symbols that the data set has, or all that it has if it has none of them."""
        return tuple(symbol for symbol in symbols if symbol in self._closes) or tuple(self._closes)

    def opens_in_s(self, now: datetime) -> float:  # noqa: ARG002 - the simulated market never closes
        """Return 0."""
        return 0.0

    async def fetch(self, symbol: str, known: Validators) -> Snapshot | Unchanged | Ended:
        """Return the chain at the current tick."""
        as_of, moment, plan = self._now(symbol)
        etag = f'"{self._seed}-{as_of.timestamp()}"'
        if known.etag == etag:
            return Unchanged()
        spot = spot_at(plan, moment.done)
        header = ChainHeader(
            symbol=plan.symbol,
            session=plan.session,
            as_of=as_of,
            source=self.name,
            simulated=True,
            delay_s=self.delay_s,
            close=spot,
            bid=round(spot - 0.01, 2),
            ask=round(spot + 0.01, 2),
        )
        return Snapshot(header, chain_at(plan, moment.done), Validators(etag=etag))

    def quote(self, symbol: str) -> Quote:
        """Return the underlying's quote at the current tick."""
        as_of, moment, plan = self._now(symbol)
        spot = spot_at(plan, moment.done)
        return Quote(
            symbol=plan.symbol,
            as_of=as_of,
            source=self.name,
            simulated=True,
            close=spot,
            bid=round(spot - 0.01, 2),
            ask=round(spot + 0.01, 2),
        )

    async def aclose(self) -> None:
        """Nothing is open."""

    def _now(self, symbol: str) -> tuple[datetime, Moment, Plan]:
        closes = self._closes.get(parse_symbol(symbol))
        if closes is None:
            raise NotFound("the simulator's data set does not have this symbol", symbol=symbol)
        ticks = self._clock().timestamp() // self._tick_s
        as_of = datetime.fromtimestamp(ticks * self._tick_s, UTC)
        moment = moment_of(as_of, self._session_s)
        plan = self._plans.get(symbol)
        if plan is None or plan.session != moment.session:
            plan = plan_session(symbol, moment.session, closes, self._sessions, seed=self._seed, unusual=self._unusual)
            self._plans[symbol] = plan
        return as_of, moment, plan


def load_closes() -> dict[str, Floats]:
    """Return the data set's daily closes by today's symbol, USD, oldest first."""
    spec = find_spec("bokeh_sampledata")
    if spec is None or spec.origin is None:
        raise NotFound("the package bokeh-sampledata is not installed")
    closes: dict[str, list[float]] = {}
    path = Path(spec.origin).parent / "_data" / "stocks.csv.gz"
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name = NAMES.get(row["Ticker"])
            if name is not None and row["Date"] >= FIRST_CLOSE:
                closes.setdefault(name, []).append(float(row["Close"]))
    return {name: np.array(prices) for name, prices in sorted(closes.items())}
