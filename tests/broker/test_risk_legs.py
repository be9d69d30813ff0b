"""What several legs, stops, notional sales and odd quotes take of the buying power, by the careful rule."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.broker.domain.checks import check
from services.broker.domain.instruments import Instrument, instrument
from services.broker.domain.orders import Leg, Terms
from services.broker.domain.risk import Limits, Quote, Recent, Snapshot, assess, needed_cash
from tests.broker.samples import AAPL, CALL, T0, at, terms
from tests.broker.test_checks import VENUE

D = Decimal
HIGHER = instrument("AAPL261218C00210000")
LATER = instrument("AAPL270115C00200000")
PUT = instrument("AAPL261218P00190000")
LOWER_PUT = instrument("AAPL261218P00180000")
PRICES = {
    "AAPL": ("99.90", "100"),
    CALL.key: ("2", "2.10"),
    HIGHER.key: ("1", "1.10"),
    LATER.key: ("3", "3.10"),
    PUT.key: ("2", "2.10"),
    LOWER_PUT.key: ("1", "1.10"),
}
LIMITS = Limits(D(100_000), D(500_000), 3)
MARKET: dict[str, Any] = {"type": "market", "limit": None}


def seen(**changes: Any) -> Snapshot:
    quotes = {key: Quote(D(bid), D(ask), T0) for key, (bid, ask) in PRICES.items()}
    given: dict[str, Any] = {"quotes": quotes, "entitled": True, "halted_user": False, "halted_all": False}
    return Snapshot(T0, changes.pop("power", D(100)), "open", **{**given, **changes})


def several(*legs: tuple[Any, ...], quantity: int = 1, **changes: Any) -> Terms:
    made = tuple(Leg(*leg) for leg in legs)
    return terms(quantity, legs=made, order_class="multi_leg", **{**MARKET, **changes})


def codes(asked: Terms, **changes: Any) -> set[str]:
    return {one.code for one in assess(asked, LIMITS, seen(**changes))}


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        # bare: the strikes, and what is received counts for nothing
        (several((CALL, "sell"), (PUT, "sell"), quantity=10), (200 + 190) * 100 * 10),
        (several((CALL, "sell", 10), (HIGHER, "buy", 1)), 200 * 100 * 10),
        (several((CALL, "buy"), (LATER, "sell")), 200 * 100),
        (several((CALL, "sell"), (PUT, "buy")), 200 * 100 + 10),
        (several((AAPL, "sell", 100), (CALL, "buy")), 99.9 * 100),
        # covered: the width of the strikes less what is received, whatever the order calls itself
        (several((CALL, "sell"), (HIGHER, "buy")), 1000 - 90),
        (several((CALL, "buy"), (HIGHER, "sell")), 110),
        (several((PUT, "sell"), (LOWER_PUT, "buy")), 1000 - 90),
        (several((CALL, "sell"), (LATER, "buy")), 110),
        (several((CALL, "sell"), (HIGHER, "buy"), (PUT, "sell"), (LOWER_PUT, "buy")), 2000 - 180),
        # each long one covers once
        (several((CALL, "sell"), (HIGHER, "sell"), (LATER, "buy")), 210 * 100 + 10),
    ],
)
def test_several_legs_need_what_those_sold_short_may_cost(asked: Terms, needed: float) -> None:
    assert needed_cash(asked, seen()) == D(str(needed))


@pytest.mark.parametrize(
    ("sides", "limit", "found"),
    [
        (("buy", "sell"), "98", set[str]()),  # shares at 100 less a call at 2
        (("buy", "sell"), "104", {"PRICE_COLLAR"}),
        (("buy", "sell"), "9998", {"PRICE_COLLAR", "ORDER_TOO_LARGE", "BUYING_POWER"}),
        (("sell", "buy"), "-97.80", set[str]()),
        (("sell", "buy"), "-9788", {"PRICE_FAR", "ORDER_TOO_LARGE"}),
    ],
)
def test_shares_beside_an_option_are_priced_as_their_venue_prices_them(
    sides: tuple[str, str], limit: str, found: set[str]
) -> None:
    asked = several((AAPL, sides[0], 100), (CALL, sides[1]), type="limit", limit=D(limit))
    assert codes(asked, power=D(100_000)) == found


def test_shares_and_a_call_at_the_market_need_what_they_cost() -> None:
    covered = several((AAPL, "buy", 100), (CALL, "sell"))
    assert needed_cash(covered, seen()) == (100 - 2) * 100 + 200 * 100, "the call counts as bare"


def test_a_long_leg_that_only_closes_covers_nothing_and_a_short_leg_that_closes_needs_nothing() -> None:
    roll = several((CALL, "sell"), (HIGHER, "buy"))
    assert needed_cash(roll, seen(held={HIGHER.key: D(-1)})) == 200 * 100
    assert needed_cash(roll, seen(held={CALL.key: D(1)})) == 0


def test_the_size_of_several_legs_is_that_of_all_not_of_their_net() -> None:
    asked = several((CALL, "buy"), (PUT, "sell"), quantity=300)
    assert "ORDER_TOO_LARGE" in codes(asked, power=D(10**9))
    assert "ORDER_TOO_LARGE" not in codes(several((CALL, "buy"), (PUT, "sell"), quantity=200), power=D(10**9))


def test_a_leg_that_nobody_bids_for_brings_nothing() -> None:
    given = seen()
    quotes = {**given.quotes, HIGHER.key: Quote(D(0), D(5), T0)}
    assert needed_cash(several((CALL, "buy"), (HIGHER, "sell")), seen(quotes=quotes)) == 210


def test_a_stop_on_the_wrong_side_is_worth_what_the_market_is() -> None:
    low = terms(4000, type="stop", stop=D("0.01"), limit=None)
    assert codes(low) == {"ORDER_TOO_LARGE", "BUYING_POWER"}
    assert needed_cash(low, seen()) == 400_000
    assert needed_cash(terms(10, type="stop", stop=D(120), limit=None), seen()) == 1200


@pytest.mark.parametrize(
    ("held", "selling", "needed"), [(0, 0, 50_000), (100, 0, 40_010), (1000, 0, 0), (1000, 900, 40_010)]
)
def test_what_a_notional_sale_sells_short_is_covered(held: int, selling: int, needed: int) -> None:
    asked = terms(None, "sell", notional=D(50_000), **MARKET)
    snapshot = seen(held={"AAPL": D(held)}, selling={"AAPL": D(selling)})
    assert needed_cash(asked, snapshot) == needed


@pytest.mark.parametrize(("ahead_s", "found"), [(1, set[str]()), (61, {"NO_QUOTE"}), (86_400 * 180, {"NO_QUOTE"})])
def test_a_quote_from_the_future_is_as_wrong_as_an_old_one(ahead_s: int, found: set[str]) -> None:
    quotes = {"AAPL": Quote(D(1), D(1), T0 + timedelta(seconds=ahead_s))}
    assert codes(terms(1, **MARKET), quotes=quotes) == found


def test_a_replacement_counts_against_the_pace_and_may_be_what_the_order_was() -> None:
    same = tuple(Recent(at(-1), terms(1, **MARKET)) for _ in range(2))
    assert codes(terms(1, **MARKET), recent=same) == {"DUPLICATE_ORDER"}
    assert codes(terms(1, **MARKET), recent=same, replaces=True) == set()
    assert codes(terms(1, **MARKET), recent=(*same, *same), replaces=True) == {"TOO_MANY_ORDERS"}


@pytest.mark.parametrize("of", [AAPL, CALL])
def test_a_number_too_large_to_reckon_with_is_refused_and_not_an_error(of: Instrument) -> None:
    for quantity, limit in (("1e9999999", "1"), ("1", "1e9999999"), ("1", "-1e9999999")):
        found = check(terms(quantity, of=of, limit=D(limit)), VENUE, {}, T0.date())
        assert {"QUANTITY_INVALID", "PRICE_INVALID"} & {one.code for one in found}


@pytest.mark.parametrize(
    ("symbol", "named", "wrong"),
    [
        (CALL.key, "_SPX", True),
        (CALL.key, "AAPL", False),
        ("SPXW261218P05000000", "SPXW", True),
        ("SPXW261218P05000000", None, False),
        ("BRKB261218C00400000", "BRK.B", False),
    ],
)
def test_nobody_chooses_what_an_option_lies_under(symbol: str, named: str | None, wrong: bool) -> None:
    found = {one.code for one in check(terms(1, of=instrument(symbol, named)), VENUE, {}, T0.date())}
    assert ("UNDERLYING_WRONG" in found) == wrong


ETH_BTC = instrument("ETH/BTC")
COINS = {"ETH/BTC": Quote(D("0.03"), D("0.04"), T0), "BTC/USD": Quote(D(79_000), D(80_000), T0)}


def in_coins(quantity: Any, side: Any = "buy", quotes: Any = COINS, **changes: Any) -> set[str]:
    asked = terms(D(quantity), side, ETH_BTC, time_in_force="gtc", **MARKET)
    return codes(asked, quotes=quotes, power=D(100_000), **changes)


def test_a_pair_that_is_paid_in_coins_is_limited_by_what_they_are_worth():
    assert in_coins("31.25") == set()
    assert in_coins("31.26") == {"ORDER_TOO_LARGE"}
    assert in_coins("31.25", held={"ETH/BTC": D("125")}) == set()
    assert in_coins("31.25", held={"ETH/BTC": D("125.01")}) == {"POSITION_TOO_LARGE"}
    by_value = terms(None, "buy", ETH_BTC, time_in_force="gtc", notional=D("1.26"), **MARKET)
    assert codes(by_value, quotes=COINS, power=D(100_000)) == {"ORDER_TOO_LARGE"}


@pytest.mark.parametrize("worth", [None, Quote(D(79_000), D(80_000), at(-61)), Quote(D(79_000), D(0), T0)])
def test_what_is_paid_in_coins_of_unknown_worth_is_closed_and_not_opened(worth: Quote | None):
    quotes = {"ETH/BTC": COINS["ETH/BTC"]} | ({} if worth is None else {"BTC/USD": worth})
    assert in_coins(1, quotes=quotes) == {"NO_QUOTE"}
    assert in_coins(1, "sell", quotes, held={"ETH/BTC": D(1)}) == set()


@pytest.mark.parametrize("quote", ["USD", "USDT", "USDC", "EUR", "JPY"])
def test_money_is_worth_what_it_says(quote: str):
    pair = instrument(f"BTC/{quote}")
    asked = terms(D(1), "buy", pair, time_in_force="gtc", **MARKET)
    assert codes(asked, quotes={pair.key: Quote(D(99_999), D(100_000), T0)}, power=D(100_000)) == set()
