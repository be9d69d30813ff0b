"""Simulated quotes of crypto pairs, for machines without a network. Every quote says so."""

from collections.abc import Sequence
from datetime import UTC, datetime

from services.data.domain.pairs import simulated
from services.data.ports import PairQuotes
from shared.clock import Clock


class SimulatedPairs:
    """Answers from the seed and the clock alone."""

    name = "simulator"
    simulated = True

    def __init__(self, *, clock: Clock, seed: int, every_s: float) -> None:
        self.every_s = every_s
        self._clock = clock
        self._seed = seed

    async def quotes(self, pairs: Sequence[str]) -> PairQuotes:
        """Return the quotes at the current tick."""
        at = datetime.fromtimestamp(self._clock().timestamp() // self.every_s * self.every_s, UTC)
        return PairQuotes([simulated(pair, at, self._seed) for pair in pairs])

    async def aclose(self) -> None:
        """Nothing is open."""
