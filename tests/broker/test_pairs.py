"""Quotes of crypto pairs as `data` tells them: kept, and what orders and exits are judged by."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from shared.contracts.broker import ExitTerms, LegTerms, OrderTerms
from shared.contracts.quotes import PairQuoted
from tests.broker.brokerage import Brokerage, opened
from tests.fakes.venue_books import Manner

D = Decimal
PAIR = "BTC/USD"


@pytest.fixture
async def quoting(database_url: str) -> AsyncGenerator[Brokerage]:
    async with opened(database_url, Manner(tells_quotes=True)) as found:
        yield found


async def hear(brokerage: Brokerage, bid: str, ask: str, later_s: float = 0) -> None:
    now = brokerage.clock()
    at = now + timedelta(seconds=later_s)
    fields: dict[str, Any] = {"source": "simulator", "simulated": True, "bid": D(bid), "ask": D(ask)}
    await brokerage.hear(PairQuoted(id=uuid4(), time=now, symbol=PAIR, as_of=at, **fields))


async def kept(brokerage: Brokerage) -> list[tuple[Decimal, Decimal, bool]]:
    rows = await brokerage.rows("select bid, ask, simulated from quotes where symbol = 'BTC/USD'")
    return [(row["bid"], row["ask"], row["simulated"]) for row in rows]


async def test_the_newest_quote_of_a_pair_is_kept_to_the_last_digit(brokerage: Brokerage) -> None:
    await hear(brokerage, "0.000012345678", "0.000012345679")
    assert await kept(brokerage) == [(D("0.000012345678"), D("0.000012345679"), True)]
    await hear(brokerage, "7", "8", later_s=-1)
    assert await kept(brokerage) == [(D("0.000012345678"), D("0.000012345679"), True)]
    await hear(brokerage, "7", "8", later_s=1)
    assert await kept(brokerage) == [(D(7), D(8), True)]


@pytest.mark.parametrize(("bid", "ask", "later_s"), [("2", "1", 0), ("-1", "1", 0), ("1", "2", 6)])
async def test_a_quote_that_cannot_be_is_not_kept(brokerage: Brokerage, bid: str, ask: str, later_s: int) -> None:
    await hear(brokerage, bid, ask, later_s)
    assert await kept(brokerage) == []


@pytest.mark.parametrize(("age_s", "codes"), [(60, []), (61, ["NO_QUOTE"])])
async def test_an_order_is_judged_by_it_while_it_is_fresh(brokerage: Brokerage, age_s: int, codes: list[str]) -> None:
    await hear(brokerage, "99.9", "100", later_s=-age_s)
    placed = await brokerage.place(await brokerage.account(), PAIR, time_in_force="gtc")
    assert await brokerage.codes(placed) == codes


async def test_an_order_that_is_paid_in_coins_is_valued_by_their_pair(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    await brokerage.quotes(**{"MSFT": ("400", "400.05"), "ETH/BTC": ("0.03", "0.04")})
    brokerage.desk(account).quotes["ETH/BTC"] = (D("0.03"), D("0.04"))
    small: dict[str, Any] = {"limit": D("0.04"), "time_in_force": "gtc", "quantity": D(20)}
    assert await brokerage.codes(await brokerage.place(account, "ETH/BTC", **small)) == ["NO_QUOTE"]
    await hear(brokerage, "79000", "80000")
    assert await brokerage.codes(await brokerage.place(account, "ETH/BTC", **small)) == []
    large = small | {"quantity": D("31.26")}
    assert await brokerage.codes(await brokerage.place(account, "ETH/BTC", **large)) == ["ORDER_TOO_LARGE"]


async def test_a_bracket_of_a_pair_follows_it_where_the_venue_tells_quotes_of_its_own(quoting: Brokerage) -> None:
    await hear(quoting, "99.9", "100")
    account = await quoting.account()
    leg, exits = LegTerms(symbol=PAIR, side="buy"), ExitTerms(take_profit=D(120), stop_loss=D(90))
    bracket: dict[str, Any] = {"order_class": "bracket", "exits": exits, "time_in_force": "gtc"}
    terms = OrderTerms(legs=(leg,), type="limit", quantity=D(1), limit=D(100), **bracket)
    placed = await quoting.place_terms(account, terms)
    assert await quoting.codes(placed) == []
    assert quoting.desk(account).submits() == [placed]
