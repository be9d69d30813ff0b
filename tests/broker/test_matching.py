"""The matching engine of the paper venue: what an order takes of a book of one level."""

from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.domain.instruments import Instrument, instrument
from services.broker.domain.matching import Book, Match, Model, Working, match, net, net_limit
from services.broker.domain.orders import Leg, Side, Terms

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
AAPL, BTC = instrument("AAPL"), instrument("BTC/USD")
LOW, HIGH = instrument("AAPL261218C00200000"), instrument("AAPL261218C00210000")
PLAIN = Model(fee_a_contract=Decimal(0), crypto_fee_bps=Decimal(0))


def book(bid: Any = "99.98", ask: Any = 100, bid_size: Any = None, ask_size: Any = None) -> Book:
    bid, ask, bid_size, ask_size = (None if one is None else Decimal(one) for one in (bid, ask, bid_size, ask_size))
    return Book(bid, ask, NOW, bid_size, ask_size)


def working(quantity: Any = 100, side: Side = "buy", of: Instrument = AAPL, **changes: Any) -> Working:
    numbers = {
        name: Decimal(value) if name in {"limit", "stop", "trail_amount", "trail_percent", "notional"} else value
        for name, value in changes.items()
    }
    given: dict[str, Any] = {"legs": (Leg(of, side),), "type": "market", "time_in_force": "gtc", **numbers}
    return Working(Terms(quantity=None if quantity is None else Decimal(quantity), **given))


def meet(order: Working, *books: Book, model: Model = PLAIN, seed: int = 1) -> Match:
    """Let an order of one leg meet one book after the other; the takes are all of them."""
    takes: list[Any] = []
    met = Match(order)
    for one in books:
        met = match(met.order, {order.terms.legs[0].instrument.key: one}, model, Random(seed))
        takes += met.takes
    return Match(met.order, tuple(takes), met.whole)


def filled(met: Match) -> list[tuple[str, str]]:
    return [(str(take.quantity), str(take.price)) for take in met.takes]


def test_a_buy_takes_the_ask_and_a_sell_the_bid():
    assert filled(meet(working(), book())) == [("100", "100")]
    assert filled(meet(working(side="sell"), book())) == [("100", "99.98")]


@pytest.mark.parametrize(
    ("side", "limit", "fills"), [("buy", 100, 1), ("buy", "99.99", 0), ("sell", "99.98", 1), ("sell", "99.99", 0)]
)
def test_a_limit_is_filled_when_the_book_reaches_it_and_at_the_book_s_price(side: Side, limit: Any, fills: int):
    assert len(meet(working(side=side, type="limit", limit=limit), book()).takes) == fills


@pytest.mark.parametrize(
    "bad", [book(ask=None), book(bid=101, ask=100), book(ask=0), book(ask="NaN"), book(ask_size=0)]
)
def test_an_empty_or_crossed_book_fills_nothing(bad: Book):
    assert meet(working(), bad) == Match(working())


def test_a_crossed_book_triggers_no_stop():
    assert not meet(working(type="stop", stop=100), book(bid=120, ask=110)).order.triggered


def test_a_stop_waits_until_the_side_it_would_take_reaches_it_and_stays_triggered():
    order = working(type="stop", stop=101)
    assert not meet(order, book()).takes
    assert filled(meet(order, book(), book(101, "101.05"))) == [("100", "101.05")]
    limited = working(type="stop_limit", stop=101, limit="101.02")
    assert filled(meet(limited, book(101, "101.05"), book("100.9", "100.95"))) == [("100", "100.95")]


def test_a_trailing_stop_follows_the_best_price_and_never_goes_back():
    by_amount = working(side="sell", type="trailing_stop", trail_amount=2)
    assert not meet(by_amount, book(100, "100.1"), book(105, "105.1"), book("103.01", "103.1")).takes
    assert filled(meet(by_amount, book(100, "100.1"), book(105, "105.1"), book(103, "103.1"))) == [("100", "103")]
    by_percent = working(type="trailing_stop", trail_percent=10)
    assert not meet(by_percent, book(99, 100), book(89, 90), book(97, "98.99")).takes
    assert filled(meet(by_percent, book(99, 100), book(89, 90), book(98, 99))) == [("100", "99")]


def test_only_what_the_level_shows_or_its_share_is_taken():
    thirty = book(ask_size=30)
    assert filled(meet(working(), thirty)) == [("30", "100")]
    assert filled(meet(working(), thirty, model=Model(share=Decimal("0.25")))) == [("7", "100")]
    met = meet(working(), thirty, thirty, thirty, thirty)
    assert [take.quantity for take in met.takes] == [30, 30, 30, 10]
    assert met.whole


def test_a_fill_or_kill_takes_all_or_nothing():
    assert not meet(working(time_in_force="fok"), book(ask_size=99)).takes
    assert meet(working(time_in_force="fok"), book(ask_size=100)).whole


def test_fractions_are_filled_as_they_are_shown():
    assert filled(meet(working("0.5"), book(ask_size="0.2"))) == [("0.200000000", "100")]
    assert filled(meet(working(2, of=BTC), book(ask_size="0.5"))) == [("0.500000000", "100")]


def test_a_notional_buys_what_it_pays_and_is_whole_when_the_rest_buys_nothing():
    met = meet(working(None, notional=1000), book(2, 3))
    assert filled(met) == [("333.333333333", "3")]
    assert met.whole
    assert met.order.spent <= 1000
    part = meet(working(None, notional=1000), book(2, 3, ask_size="333.333333332"))
    assert not part.whole
    rest = meet(part.order, book(6, 7))
    assert rest.whole
    assert not rest.takes


def test_slippage_is_against_the_order_and_within_its_basis_points_and_its_limit():
    slips = Model(slippage_bps=Decimal(50))
    prices = {meet(working(), book(), model=slips, seed=seed).takes[0].price for seed in range(30)}
    assert len(prices) > 20
    assert all(100 <= price <= Decimal("100.5") for price in prices)
    limited = {
        meet(working(type="limit", limit="100.1"), book(), model=slips, seed=s).takes[0].price for s in range(30)
    }
    assert max(limited) == Decimal("100.1")


def test_fees_go_up_to_the_cent():
    model = Model(
        Decimal(0), fee_a_share=Decimal("0.0035"), fee_a_contract=Decimal("0.651"), crypto_fee_bps=Decimal(25)
    )
    assert meet(working(3), book(), model=model).takes[0].fee == Decimal("0.02")
    assert meet(working(3, of=LOW), book(), model=model).takes[0].fee == Decimal("1.96")
    assert meet(working("0.01", of=BTC), book(ask=100000), model=model).takes[0].fee == Decimal("2.50")


def spread(limit: Any = None, quantity: Any = 10, **changes: Any) -> Working:
    terms = Terms(
        (Leg(LOW, "buy"), Leg(HIGH, "sell", 2)),
        "market" if limit is None else "limit",
        "day",
        Decimal(quantity),
        limit=None if limit is None else Decimal(limit),
        order_class="multi_leg",
    )
    return Working(terms, **changes)


def test_several_legs_are_filled_together_by_their_net_price_or_not_at_all():
    books = {LOW.key: book(9, 10), HIGH.key: book(4, 5, bid_size=9)}
    met = match(spread("2"), books, PLAIN, Random(1))
    assert filled(met) == [("4", "10"), ("8", "4")]
    assert match(spread("1.99"), books, PLAIN, Random(1)).takes == ()
    assert match(spread(), {LOW.key: book(9, 10)}, PLAIN, Random(1)).takes == ()


def test_shares_beside_an_option_count_by_the_price_of_one():
    legs = (Leg(AAPL, "buy", 100), Leg(LOW, "sell"))
    assert net(legs, (Decimal(200), Decimal(3))) == 197


prices = st.decimals("0.01", 500, places=2)
books = st.builds(
    lambda bid, width, size: Book(bid, bid + width, NOW, size, size),
    prices,
    st.decimals(0, 3, places=2),
    st.none() | st.integers(0, 50).map(Decimal),
)
models = st.builds(
    Model,
    st.decimals(0, 200, places=1),
    st.sampled_from([Decimal(1), Decimal("0.3")]),
    fee_a_share=st.just(Decimal("0.01")),
)


@st.composite
def orders(draw: st.DrawFn) -> Working:
    kind = draw(st.sampled_from(["market", "limit", "stop", "stop_limit", "trailing_stop"]))
    by_notional = kind == "market" and draw(st.booleans())
    given: dict[str, Any] = {
        **({"notional": draw(st.decimals(1, 9999, places=2))} if by_notional else {}),
        **({"limit": draw(prices)} if "limit" in kind else {}),
        **({"stop": draw(prices)} if kind.startswith("stop") else {}),
        **({"trail_amount": draw(prices)} if kind == "trailing_stop" else {}),
    }
    return working(
        None if by_notional else draw(st.integers(1, 99) | st.decimals("0.001", 99, places=3)),
        draw(st.sampled_from(["buy", "sell"])),
        type=kind,
        time_in_force=draw(st.sampled_from(["gtc", "fok"])),
        **given,
    )


@given(orders(), st.lists(books, max_size=6), models, st.integers(0, 9))
def test_no_order_is_filled_beyond_what_it_allows_whatever_the_market_does(
    order: Working, market: list[Book], model: Model, seed: int
):
    terms, random = order.terms, Random(seed)
    buys = terms.legs[0].side == "buy"
    met, total, spent = Match(order), Decimal(0), Decimal(0)
    for one in market:
        if met.whole:
            break
        met = match(met.order, {"AAPL": one}, model, random)
        for take in met.takes:
            offer, size = one.offer(buys=buys), one.size(buys=buys)
            assert offer is not None
            assert take.quantity > 0
            assert take.price >= offer if buys else take.price <= offer
            assert abs(take.price - offer) <= offer * model.slippage_bps / 10_000
            assert terms.limit is None or net(terms.legs, [take.price]) <= net_limit(terms, terms.limit)
            assert size is None or take.quantity <= size * model.share
            total, spent = total + take.quantity, spent + take.quantity * take.price
            assert terms.time_in_force != "fok" or met.whole
    assert total == met.order.filled
    assert total <= (terms.quantity or Decimal("Infinity"))
    assert spent <= (terms.notional or Decimal("Infinity"))
    assert met.whole == (total == terms.quantity) or terms.quantity is None


@given(orders(), st.lists(books, max_size=6), models)
def test_the_same_seed_fills_alike(order: Working, market: list[Book], model: Model):
    assert meet(order, *market, model=model) == meet(order, *market, model=model)
