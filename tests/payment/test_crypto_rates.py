"""What coins are worth: right and wrong answers of an exchange, and stablecoins that are not stable."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from services.payment.adapters.rates import FixedRates, SpotRates
from services.payment.domain.chains import Asset, Chain
from services.payment.ports import ChainReader, RateUnavailable
from shared.db import Database
from tests.conftest import ManualClock
from tests.payment.crypto_bench import Bench

NOW = datetime(2026, 3, 1, tzinfo=UTC)
CLOCK = ManualClock(NOW)


@dataclass
class Exchange:
    """Answers what it is told to."""

    url: str = ""
    status: int = 200
    body: str = ""
    asked: list[str] = field(default_factory=list[str])


@pytest.fixture
async def exchange() -> AsyncGenerator[Exchange]:
    told = Exchange()

    async def answer(request: web.Request) -> web.Response:
        told.asked.append(request.path)
        return web.Response(status=told.status, text=told.body, content_type="application/json")

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    server = TestServer(app)
    await server.start_server()
    told.url = str(server.make_url("/"))
    yield told
    await server.close()


async def test_a_spot_price_is_a_decimal_with_its_source_and_time(exchange: Exchange):
    exchange.body = '{"data": {"amount": "97123.45", "base": "BTC", "currency": "USD"}}'
    rates = SpotRates(exchange.url, CLOCK)
    rate = await rates.rate("BTC")
    assert (rate.usd, rate.source, rate.at) == (Decimal("97123.45"), "spot", NOW)
    assert exchange.asked == ["/v2/prices/BTC-USD/spot"]
    await rates.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, '{"data": {"amount": "1", "base": "BTC", "currency": "USD"}}'),
        (429, ""),
        (200, ""),
        (200, "[]"),
        (200, "null"),
        (200, '{"data": {"amount": "1", "base": "ETH", "currency": "USD"}}'),
        (200, '{"data": {"amount": "1", "base": "BTC", "currency": "EUR"}}'),
        (200, '{"data": {"amount": "0", "base": "BTC", "currency": "USD"}}'),
        (200, '{"data": {"amount": "-5", "base": "BTC", "currency": "USD"}}'),
        (200, '{"data": {"amount": "NaN", "base": "BTC", "currency": "USD"}}'),
        (200, '{"data": {"amount": "Infinity", "base": "BTC", "currency": "USD"}}'),
        (200, '{"data": {"amount": "dear", "base": "BTC", "currency": "USD"}}'),
    ],
)
async def test_an_answer_that_is_no_rate_is_none(exchange: Exchange, status: int, body: str):
    exchange.status, exchange.body = status, body
    rates = SpotRates(exchange.url, CLOCK)
    with pytest.raises(RateUnavailable):
        await rates.rate("BTC")
    await rates.close()


async def test_an_exchange_that_is_away_is_no_rate():
    rates = SpotRates("http://127.0.0.1:1", CLOCK)
    with pytest.raises(RateUnavailable):
        await rates.rate("BTC")
    await rates.close()


async def test_fixed_rates_know_what_they_were_told():
    rates = FixedRates({"BTC": Decimal(5)}, CLOCK)
    assert (await rates.rate("BTC")).usd == 5
    with pytest.raises(RateUnavailable):
        await rates.rate("ETH")


CHAIN = Chain.model_validate(
    {
        "name": "ethereum",
        "kind": "evm",
        "chain_id": 1,
        "shared_address": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "assets": [{"symbol": "ETH", "decimals": 18}],
    }
)
STABLE, COIN = Asset(symbol="USDC", decimals=6, stable=True), Asset(symbol="ETH", decimals=18)


@pytest.mark.parametrize(
    ("asset", "told", "limit", "rate"),
    [
        (STABLE, None, None, "1"),
        (STABLE, "0.5", None, "1"),
        (STABLE, "0.98", "0.02", "1"),
        (STABLE, "1.02", "0.02", "1"),
        (STABLE, "0.979", "0.02", None),
        (STABLE, "1.021", "0.02", None),
        (STABLE, None, "0.02", None),
        (COIN, "3000", None, "3000"),
        (COIN, "1e-10", None, None),
        (COIN, "1e10", None, None),
        (COIN, None, None, None),
    ],
)
async def test_a_stablecoin_is_one_dollar_unless_it_lost_its_peg_and_no_rate_is_absurd(
    open_database: Callable[[str], Database], asset: Asset, told: str | None, limit: str | None, rate: str | None
):
    usd: dict[str, Decimal] = {} if told is None else {asset.symbol: Decimal(told)}
    reader = cast("ChainReader", cast("Any", None))
    depeg = None if limit is None else Decimal(limit)
    bench = Bench(open_database("payment"), ManualClock(NOW), [(CHAIN, reader)], usd, depeg)
    if rate is None:
        with pytest.raises(RateUnavailable):
            await bench.invoices.rate(asset)
    else:
        assert (await bench.invoices.rate(asset)).usd == Decimal(rate)
