"""A stand-in for a Bitcoin chain with our addresses on it, and payments by it: what tests of Bitcoin share."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

from services.payment.adapters.esplora import Esplora
from services.payment.domain.chains import Chain
from shared.db import Database
from tests.conftest import ManualClock
from tests.fakes.esplora import FakeEsplora
from tests.payment.crypto_bench import Bench

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OURS = ["bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080", "2MzQwSSnBHWHqSAqtTVQ6v47XtaisrJa1Vc"]
SHARED = "mipcBbFg9gMiCh81Kj8tqqdgoZub1ZJRfn"
PRICE = 29_000
NEEDED, FINAL = 2, 4
DAY = timedelta(days=1)
_NAMES = count()


@dataclass
class Town:
    """A chain, our address on it, and our bench."""

    esplora: FakeEsplora
    bench: Bench

    async def pass_time(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        self.esplora.now = int(self.bench.clock.now.timestamp())
        await self.bench.round()

    async def mine(self, blocks: int = 1) -> None:
        self.esplora.mine(blocks)
        self.bench.clock.now = max(self.bench.clock.now, datetime.fromtimestamp(self.esplora.now, UTC))
        await self.bench.round()


@asynccontextmanager
async def town_on(database: Database) -> AsyncGenerator[Town]:
    clock = ManualClock(NOW)
    chain = Chain.model_validate(
        {
            "name": f"regtest-{next(_NAMES)}",
            "kind": "bitcoin",
            "network": "regtest",
            "assets": [{"symbol": "BTC", "decimals": 8}],
            "addresses": OURS,
            "confirmations": [{"blocks": NEEDED}],
            "final_blocks": FINAL,
        }
    )
    async with FakeEsplora(NOW.timestamp()) as esplora:
        esplora.mine()
        reader = Esplora(esplora.url, "regtest", "BTC")
        bench = Bench(database, clock, [(chain, reader)], {"BTC": Decimal(100_000)})
        await bench.round()
        yield Town(esplora, bench)
        await bench.close()
