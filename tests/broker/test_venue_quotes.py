"""Orders at a venue that tells quotes of its own are judged by them."""

from collections.abc import AsyncGenerator
from decimal import Decimal

import pytest

from shared.contracts.broker import ExitTerms, LegTerms, OrderTerms
from tests.broker.brokerage import Brokerage, opened
from tests.fakes.venue_books import Manner

D = Decimal
PAIR = "BTC/USD"


@pytest.fixture
async def quoting(database_url: str) -> AsyncGenerator[Brokerage]:
    async with opened(database_url, Manner(tells_quotes=True)) as found:
        yield found


@pytest.mark.parametrize(("limit", "codes"), [("100", []), ("111", ["PRICE_COLLAR"])])
async def test_a_pair_that_nobody_else_quotes_is_judged_by_its_venue(
    quoting: Brokerage, limit: str, codes: list[str]
) -> None:
    account = await quoting.account()
    placed = await quoting.place(account, PAIR, limit=D(limit))
    assert await quoting.codes(placed) == codes
    assert quoting.desk(account).submits() == ([] if codes else [placed])


async def test_the_venues_quote_counts_before_any_other(quoting: Brokerage) -> None:
    await quoting.quotes(**{PAIR: ("50", "50.02")})
    placed = await quoting.place(await quoting.account(), PAIR)
    assert await quoting.codes(placed) == []


async def test_a_pair_without_a_market_has_no_quote(quoting: Brokerage) -> None:
    account = await quoting.account()
    quoting.desk(account).quotes["ETH/USD"] = quoting.desk(account).quotes.pop(PAIR)
    assert "UNKNOWN_SYMBOL" in await quoting.codes(await quoting.place(account, PAIR))


async def test_a_bracket_follows_quotes_that_its_exits_see_too(quoting: Brokerage) -> None:
    exits = ExitTerms(take_profit=D(120), stop_loss=D(90))
    leg = LegTerms(symbol=PAIR, side="buy")
    terms = OrderTerms(legs=(leg,), type="limit", quantity=D(1), limit=D(100), order_class="bracket", exits=exits)
    placed = await quoting.place_terms(await quoting.account(), terms)
    assert await quoting.codes(placed) == ["NO_QUOTE"]


async def test_a_position_in_a_pair_is_closed_by_its_venues_quote(quoting: Brokerage) -> None:
    account = await quoting.account()
    bought = await quoting.place(account, PAIR, quantity=2)
    await quoting.desk(account).fill(bought, D(2), D(100))
    await quoting.reconcile(account)
    protecting = await quoting.place(account, PAIR, quantity=2, side="sell", limit=D(101))
    closing = await quoting.close_position(account, PAIR)
    await quoting.settle(wholly=True)
    assert (await quoting.state(protecting), await quoting.state(closing)) == ("canceled", "accepted")
