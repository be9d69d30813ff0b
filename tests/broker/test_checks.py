"""What is refused before anything reaches a venue, each time with a code and with what to change."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.domain.checks import Capabilities, Refusal, TradeRules, check
from services.broker.domain.instruments import instrument
from services.broker.domain.orders import Exits, Leg, Terms
from services.broker.domain.risk import Limits, Quote, Recent, Snapshot, assess, mode
from tests.broker.samples import AAPL, CALL, T0, UNHURRIED, at, terms

CENTS = TradeRules(((Decimal(0), Decimal("0.0001")), (Decimal(1), Decimal("0.01"))), Decimal("0.001"), Decimal("0.01"))
NICKELS = TradeRules(((Decimal(0), Decimal("0.05")),), Decimal(1), Decimal(1))
HIGHER = instrument("AAPL261218C00210000")
LATER = instrument("AAPL270115C00200000")
PUT = instrument("AAPL261218P00200000")
OTHER = instrument("MSFT261218C00210000")
OLD = instrument("AAPL251219C00200000")
ADJUSTED = instrument("AAPL1261218C00200000")
BTC = instrument("BTC/USD")
RULES: Mapping[str, TradeRules] = {
    "AAPL": CENTS,
    "BTC/USD": CENTS,
    "HALT": replace(CENTS, tradable=False),
    **{one.key: NICKELS for one in (CALL, HIGHER, LATER, PUT, OTHER, OLD, ADJUSTED)},
}
VENUE = Capabilities(
    venue="paper",
    types=frozenset({"market", "limit", "stop", "stop_limit", "trailing_stop"}),
    times={"equity": frozenset({"day", "gtc", "ioc", "opg"}), "option": frozenset({"day"})},
    classes=frozenset({"simple", "bracket", "oco", "multi_leg"}),
    notional=frozenset({"equity"}),
    extended_hours=True,
)
TODAY = date(2026, 11, 20)


def refused(given_terms: Terms, venue: Capabilities = VENUE) -> set[str]:
    found = check(given_terms, venue, RULES, TODAY)
    assert all(one.message for one in found)
    return {one.code for one in found}


def spread(*legs: tuple[Any, ...], **changes: Any) -> Terms:
    made: dict[str, Any] = {"quantity": 1, "legs": tuple(Leg(*leg) for leg in legs), "order_class": "multi_leg"}
    return terms(**{**made, **changes})


def test_good_orders_pass():
    for good in (
        terms(),
        terms(type="market", limit=None),
        terms(type="stop_limit", stop=Decimal(9)),
        terms(type="trailing_stop", limit=None, trail_percent=Decimal(5)),
        terms(None, notional=Decimal(100), type="market", limit=None),
        terms("0.5"),
        terms(1, of=CALL),
        terms(limit=Decimal("0.1234")),
        terms(order_class="bracket", exits=Exits(Decimal(12), Decimal(9))),
        terms(side="sell", order_class="oco", limit=None, exits=Exits(Decimal(12), Decimal(9))),
        terms(extended_hours=True),
        spread((CALL, "buy"), (HIGHER, "sell"), strategy="vertical", limit=Decimal("-1.05")),
        spread((CALL, "buy"), (LATER, "sell"), strategy="calendar"),
        spread((CALL, "buy"), (PUT, "buy"), strategy="straddle"),
        spread((HIGHER, "sell"), (PUT, "sell"), strategy="strangle"),
        spread((CALL, "buy"), (HIGHER, "sell", 2)),
        terms(1, legs=(Leg(ADJUSTED, "sell", opens=False),)),
    ):
        assert refused(good) == set(), good


BAD: list[tuple[Terms, str]] = [
    (terms(-1), "QUANTITY_INVALID"),
    (terms(0), "QUANTITY_INVALID"),
    (terms("NaN"), "QUANTITY_INVALID"),
    (terms("sNaN"), "QUANTITY_INVALID"),
    (terms("Infinity"), "QUANTITY_INVALID"),
    (terms("1e90"), "QUANTITY_INVALID"),
    (terms("1e-19"), "QUANTITY_INVALID"),
    (terms(limit=Decimal("1e90")), "PRICE_INVALID"),
    (terms(None), "QUANTITY_OR_NOTIONAL"),
    (terms(1, notional=Decimal(5)), "QUANTITY_OR_NOTIONAL"),
    (terms(None, notional=Decimal("NaN")), "QUANTITY_INVALID"),
    (terms("0.0005"), "QUANTITY_STEP"),
    (terms("0.002"), "QUANTITY_TOO_SMALL"),
    (terms("1.5", of=CALL), "QUANTITY_STEP"),
    (terms(limit=Decimal(-1)), "PRICE_INVALID"),
    (terms(limit=Decimal("NaN")), "PRICE_INVALID"),
    (terms(limit=Decimal("10.001")), "TICK_SIZE"),
    (terms(1, of=CALL, limit=Decimal("1.01")), "TICK_SIZE"),
    (terms(limit=None), "LIMIT_REQUIRED"),
    (terms(type="market"), "LIMIT_NOT_ALLOWED"),
    (terms(type="stop", limit=None), "STOP_REQUIRED"),
    (terms(stop=Decimal(9)), "STOP_NOT_ALLOWED"),
    (terms(type="trailing_stop", limit=None), "TRAIL_REQUIRED"),
    (terms(type="trailing_stop", limit=None, trail_amount=Decimal(1), trail_percent=Decimal(1)), "TRAIL_REQUIRED"),
    (terms(type="trailing_stop", limit=None, trail_percent=Decimal(100)), "PRICE_INVALID"),
    (terms(trail_amount=Decimal(1)), "TRAIL_NOT_ALLOWED"),
    (terms(time_in_force="fok"), "TIF_NOT_SUPPORTED"),
    (terms(1, of=CALL, time_in_force="gtc"), "TIF_NOT_SUPPORTED"),
    (terms(of=BTC), "INSTRUMENT_NOT_SUPPORTED"),
    (terms(None, of=CALL, notional=Decimal(50)), "NOTIONAL_NOT_SUPPORTED"),
    (terms(extended_hours=True, type="market", limit=None), "EXTENDED_HOURS_NOT_ALLOWED"),
    (terms(of=instrument("NONE")), "UNKNOWN_SYMBOL"),
    (terms(of=instrument("HALT")), "NOT_TRADABLE"),
    (terms(1, of=OLD), "OPTION_EXPIRED"),
    (terms(1, of=ADJUSTED), "OPTION_ADJUSTED"),
    (terms(legs=()), "LEGS_REQUIRED"),
    (terms(legs=(Leg(AAPL, "buy", 2),)), "LEGS_DISAGREE"),
    (terms(order_class="multi_leg"), "LEGS_DISAGREE"),
    (terms(strategy="vertical"), "LEGS_DISAGREE"),
    (terms(order_class="bracket"), "EXITS_DISAGREE"),
    (terms(exits=Exits(Decimal(12), Decimal(9))), "EXITS_DISAGREE"),
    (terms(order_class="bracket", exits=Exits(Decimal(9), Decimal(12))), "EXITS_DISAGREE"),
    (terms(order_class="bracket", exits=Exits(Decimal(12), Decimal(11))), "EXITS_DISAGREE"),
    (terms(side="sell", order_class="bracket", exits=Exits(Decimal(12), Decimal(9))), "EXITS_DISAGREE"),
    (spread((CALL, "buy"), (OTHER, "sell")), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (CALL, "sell")), "LEGS_DISAGREE"),
    (spread((CALL, "buy", 2), (HIGHER, "sell", 2)), "LEGS_DISAGREE"),
    (spread((CALL, "buy", 0), (HIGHER, "sell")), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (HIGHER, "sell"), order_class="simple"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (HIGHER, "sell", 2), strategy="vertical"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (LATER, "sell"), strategy="vertical"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (HIGHER, "buy"), strategy="vertical"), "LEGS_DISAGREE"),
    (spread((HIGHER, "buy"), (PUT, "sell"), strategy="vertical"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (AAPL, "sell"), strategy="vertical"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (HIGHER, "sell"), strategy="calendar"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (PUT, "sell"), strategy="straddle"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (PUT, "buy"), strategy="strangle"), "LEGS_DISAGREE"),
    (spread((CALL, "buy"), (HIGHER, "sell"), type="stop", limit=None, stop=Decimal(1)), "TYPE_NOT_SUPPORTED"),
    (spread((CALL, "buy"), (HIGHER, "sell"), quantity=None, notional=Decimal(9)), "NOTIONAL_NOT_SUPPORTED"),
    (spread((CALL, "buy"), (HIGHER, "sell"), (LATER, "buy"), (PUT, "buy"), (AAPL, "buy")), "LEGS_TOO_MANY"),
]


@pytest.mark.parametrize(("bad", "code"), BAD)
def test_bad_terms_are_refused_with_their_code(bad: Terms, code: str):
    assert code in refused(bad)


def test_what_a_venue_does_not_take_is_refused():
    plain = Capabilities("plain", frozenset({"market"}), VENUE.times)
    exits = terms(order_class="bracket", exits=Exits(Decimal(12), Decimal(9)), extended_hours=True)
    assert refused(exits, plain) == {"TYPE_NOT_SUPPORTED", "CLASS_NOT_SUPPORTED", "EXTENDED_HOURS_NOT_SUPPORTED"}


anything = st.none() | st.decimals(allow_nan=True, allow_infinity=True)


@UNHURRIED
@given(
    quantity=anything,
    notional=anything,
    limit=anything,
    stop=anything,
    trail=anything,
    loss=anything,
    ratio=st.integers(),
)
def test_no_number_makes_the_check_fail(
    quantity: Any, notional: Any, limit: Any, stop: Any, trail: Any, loss: Any, ratio: int
):
    exits = None if loss is None else Exits(Decimal(12), loss, limit)
    legs = (Leg(CALL, "buy", ratio), Leg(HIGHER, "sell"))
    for some in (legs, legs[:1]):
        made = Terms(some, "limit", "day", quantity, notional, limit, stop, trail, trail, "bracket", exits=exits)
        for one in check(made, VENUE, RULES, TODAY):
            assert isinstance(one, Refusal)


# The risk check

LIMITS = Limits(max_order_value=Decimal(2000), max_position_value=Decimal(5000), max_orders_a_minute=3)
QUOTES = {
    "AAPL": Quote(Decimal("9.99"), Decimal(10), at(-1)),
    CALL.key: Quote(Decimal("2.00"), Decimal("2.10"), at(-1)),
    HIGHER.key: Quote(Decimal("1.00"), Decimal("1.10"), at(-1)),
    "BTC/USD": Quote(Decimal(10), Decimal(11), at(-1)),
}
MARKET: dict[str, Any] = {"type": "market", "limit": None}


def seen(**changes: Any) -> Snapshot:
    given: dict[str, Any] = {
        "now": T0,
        "buying_power": Decimal(10_000),
        "session": "open",
        "quotes": QUOTES,
        "entitled": True,
        "halted_user": False,
        "halted_all": False,
    }
    return Snapshot(**{**given, **changes})


def stopped(given_terms: Terms, **changes: Any) -> set[str]:
    found = assess(given_terms, LIMITS, seen(**changes))
    assert all(one.message for one in found)
    return {one.code for one in found}


HELD = {"held": {"AAPL": Decimal(450)}}


@pytest.mark.parametrize(
    ("asked", "snapshot", "codes"),
    [
        (terms(), {}, set()),
        (terms(), {"halted_all": True}, {"HALTED"}),
        (terms(), {"halted_user": True}, {"USER_HALTED"}),
        (terms(), {"entitled": False}, {"PLAN_REQUIRED"}),
        # money and sizes
        (terms(), {"buying_power": Decimal("999.99")}, {"BUYING_POWER"}),
        (terms(), {"buying_power": Decimal(1000)}, set()),
        (terms(None, notional=Decimal(900), **MARKET), {"buying_power": Decimal(899)}, {"BUYING_POWER"}),
        (terms(side="sell"), {"buying_power": Decimal(0)}, {"BUYING_POWER"}),
        (terms(side="sell"), {"buying_power": Decimal(0), **HELD}, set()),
        (terms(450, "sell"), HELD, set()),
        (terms(450, "sell"), {**HELD, "selling": {"AAPL": Decimal(1)}}, {"ORDER_TOO_LARGE"}),
        (terms(201), {}, {"ORDER_TOO_LARGE"}),
        (terms(None, notional=Decimal(2001), **MARKET), {}, {"ORDER_TOO_LARGE"}),
        (terms(51), HELD, {"POSITION_TOO_LARGE"}),
        (terms(50), HELD, set()),
        (terms(50), {**HELD, "buying": {"AAPL": Decimal(1)}}, {"POSITION_TOO_LARGE"}),
        (terms(1, of=CALL, limit=Decimal("2.10")), {"buying_power": Decimal(209)}, {"BUYING_POWER"}),
        (terms(1, "sell", CALL, limit=Decimal("2.00")), {}, {"BUYING_POWER"}),
        (terms(1, "sell", CALL, limit=Decimal("2.00")), {"buying_power": Decimal(20_000)}, set()),
        (
            spread((CALL, "buy"), (HIGHER, "sell"), strategy="vertical", limit=Decimal("1.10")),
            {"buying_power": Decimal(110)},
            set(),
        ),
        (
            spread((CALL, "sell"), (HIGHER, "buy"), strategy="vertical", limit=Decimal("-0.90")),
            {"buying_power": Decimal(909)},
            {"BUYING_POWER"},
        ),
        (
            spread((CALL, "sell"), (HIGHER, "buy"), strategy="vertical", limit=Decimal("-0.90")),
            {"buying_power": Decimal(910)},
            set(),
        ),
        # prices
        (terms(limit=Decimal("10.50")), {}, set()),
        (terms(limit=Decimal("10.51")), {}, {"PRICE_COLLAR"}),
        (terms(limit=Decimal("4.99")), {}, {"PRICE_FAR"}),
        (terms(side="sell", limit=Decimal("9.40")), {}, {"PRICE_COLLAR"}),
        (terms(side="sell", limit=Decimal(15)), {}, {"PRICE_FAR"}),
        (terms(side="sell", type="stop_limit", stop=Decimal(8), limit=Decimal("7.90")), {}, set()),
        (terms(side="sell", type="stop_limit", stop=Decimal(8), limit=Decimal(7)), {}, {"PRICE_COLLAR"}),
        (terms(of=instrument("MSFT")), {}, {"NO_QUOTE"}),
        (terms(), {"now": at(60)}, {"NO_QUOTE"}),
        (terms(), {"now": at(59)}, set()),
        # hours
        (terms(), {"session": "closed"}, set()),
        (terms(**MARKET), {"session": "closed"}, {"MARKET_CLOSED"}),
        (terms(time_in_force="opg", **MARKET), {"session": "closed"}, set()),
        (terms(time_in_force="ioc"), {"session": "extended"}, {"MARKET_CLOSED"}),
        (terms(extended_hours=True), {"session": "extended"}, set()),
        (terms(of=BTC, time_in_force="ioc", **MARKET), {"session": "closed"}, set()),
        # pace
        (terms(), {"recent": (Recent(at(-4.9), terms()),)}, {"DUPLICATE_ORDER"}),
        (terms(), {"recent": (Recent(at(-5), terms()),)}, set()),
        (terms(), {"recent": (Recent(at(-1), terms(99)),)}, set()),
        (terms(), {"recent": tuple(Recent(at(-59), terms(n)) for n in (1, 2, 3))}, {"TOO_MANY_ORDERS"}),
        (terms(), {"recent": tuple(Recent(at(-60), terms(n)) for n in (1, 2, 3))}, set()),
    ],
)
def test_an_order_is_stopped_by_what_stands_against_it(asked: Terms, snapshot: dict[str, Any], codes: set[str]):
    assert stopped(asked, **snapshot) == codes


def test_all_that_stands_against_an_order_is_told():
    assert stopped(terms(600, limit=Decimal(11)), halted_all=True, buying_power=Decimal(1)) == {
        "HALTED",
        "PRICE_COLLAR",
        "ORDER_TOO_LARGE",
        "POSITION_TOO_LARGE",
        "BUYING_POWER",
    }


def test_a_snapshot_that_nobody_filled_in_lets_nothing_pass():
    bare = Snapshot(T0, Decimal(10_000), "open", QUOTES)
    assert {one.code for one in assess(terms(), LIMITS, bare)} == {"HALTED", "USER_HALTED", "PLAN_REQUIRED"}


@UNHURRIED
@given(account=st.text(max_size=6) | st.sampled_from(["live", "paper"]), deployment=st.text(max_size=6))
def test_nothing_is_live_unless_both_flags_say_exactly_so(account: str, deployment: str):
    assert mode("live", "live") == "live"
    assert (mode(account, deployment) == "live") == (account == deployment == "live")
    assert (mode(account, deployment) == "paper") == (account == "paper")
    for near in ("Live", "LIVE", " live", "live ", "true", ""):
        assert mode("live", near) != mode("live", "live") != mode(near, "live")


@UNHURRIED
@given(quantity=st.integers(1, 400), more=st.integers(1, 400), power=st.integers(0, 5000))
def test_a_larger_order_is_never_easier(quantity: int, more: int, power: int):
    money = {"buying_power": Decimal(power), "now": T0 + timedelta(seconds=1)}
    assert stopped(terms(quantity), **money) <= stopped(terms(quantity + more), **money)
