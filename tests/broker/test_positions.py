"""Positions: what comes in, goes out and stays adds up exactly, by FIFO and by average cost."""

from collections import deque
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.domain.instruments import Option, instrument
from services.broker.domain.lifecycle import fills
from services.broker.domain.orders import Fill, Leg, Order, Report, Side
from services.broker.domain.positions import (
    BadFact,
    Charge,
    Delivery,
    Expiry,
    Position,
    PositionFact,
    Split,
    Way,
    apply,
    delivery,
    rebuild,
)
from tests.broker.samples import (
    AAPL,
    ACCOUNT,
    CALL,
    UNHURRIED,
    at,
    execution,
    executions,
    prices,
    quantities,
    run,
    terms,
    totals_of,
)

WAYS: tuple[Way, Way] = ("fifo", "average")
BTC = instrument("BTC/USD")
PUT = instrument("AAPL261218P00200000")
ORDER = UUID(int=1)


def traded(n: int, signed: Any, price: Any, of: Any = AAPL, **more: Any) -> Fill:
    side: Side = "buy" if Decimal(signed) > 0 else "sell"
    return Fill(f"f{n}", ORDER, of, side, abs(Decimal(signed)), Decimal(price), at(n), **more)


def after(*facts: PositionFact, of: Any = AAPL) -> Position:
    position = Position(of)
    for fact in facts:
        position = apply(position, fact)
    return position


@st.composite
def histories(draw: st.DrawFn) -> tuple[Position, list[PositionFact]]:
    """What may happen to one instrument, each fact possible after those before it."""
    of = draw(st.sampled_from([AAPL, CALL, BTC]))
    position, facts = Position(of), list[PositionFact]()
    for n in range(draw(st.integers(0, 12))):
        held, price = position.quantity, draw(prices)
        kind = draw(st.sampled_from(["trade", "trade", "trade", "flat", "split", "expiry", "charge"]))
        fact: PositionFact = Charge(f"f{n}", of, at(n), draw(prices))
        if kind == "trade" or (kind == "flat" and not held):
            signed = draw(quantities) * draw(st.sampled_from([1, -1]))
            fee = draw(st.sampled_from([Decimal(0), Decimal("1.07")]))
            in_kind = draw(st.sampled_from([Decimal(0), Decimal("0.0025")]))
            fact = traded(n, signed, price, of, fee=fee, fee_quantity=in_kind)
        elif kind == "flat":
            fact = traded(n, -held, price, of)
        elif kind == "split" and held:
            new, old = draw(st.sampled_from([(2, 1), (3, 1), (1, 3), (1, 10), (7, 3)]))
            exact = (held * new / old).quantize(Decimal("1e-12"))
            whole = exact.to_integral_value(rounding=draw(st.sampled_from(["ROUND_DOWN", "ROUND_UP"])))
            told = draw(st.sampled_from([None, whole]))
            cash = Decimal("12.34").copy_sign(held) if told is not None and abs(told) < abs(exact) else Decimal(0)
            fact = Split(f"f{n}", of, at(n), Decimal(new), Decimal(old), told, cash)
        elif kind == "expiry" and held:
            fact = Expiry(f"f{n}", of, at(n), min(abs(held), draw(quantities)), draw(st.sampled_from([0, 3])) * price)
        facts.append(fact)
        position = apply(position, fact)
    return position, facts


@UNHURRIED
@given(history=histories(), price=prices)
def test_what_is_made_and_what_is_held_equal_the_cash_and_the_value(history: tuple[Position, Any], price: Decimal):
    position, _ = history
    with localcontext(prec=60):
        total = position.cash + position.value(price)
        for way in WAYS:
            assert position.realised(way) - position.fees + position.unrealised(price, way) == total


@UNHURRIED
@given(history=histories(), data=st.data())
def test_the_same_facts_in_any_order_and_number_rebuild_the_same_position(history: Any, data: st.DataObject):
    position, facts = history
    more = data.draw(st.lists(st.sampled_from(facts), max_size=4)) if facts else []
    book = rebuild(data.draw(st.permutations([*facts, *more])))
    assert book.get(position.instrument.key, position) == position


@UNHURRIED
@given(history=histories())
def test_what_is_closed_wholly_leaves_nothing(history: tuple[Position, Any]):
    position, _ = history
    if held := position.quantity:
        position = apply(position, traded(99, -held, 5, position.instrument))
    with localcontext(prec=60):
        assert (position.quantity, position.lots, position.cost("average")) == (0, (), 0)
        assert position.realised("fifo") == position.realised("average") == position.cash + position.fees


@UNHURRIED
@given(history=histories())
def test_lots_all_go_the_same_way_and_have_something_left(history: tuple[Position, Any]):
    position, _ = history
    assert len({lot.quantity > 0 for lot in position.lots}) <= 1
    assert all(lot.quantity for lot in position.lots)


moves = st.lists(st.tuples(st.integers(-9, 9).filter(bool), st.integers(1, 50)), max_size=12)


@UNHURRIED
@given(moves=moves)
def test_fifo_is_what_a_queue_of_single_shares_says(moves: list[tuple[int, int]]):
    queue, sign, made = deque[int](), 1, 0
    for signed, price in moves:
        for _ in range(abs(signed)):
            way = 1 if signed > 0 else -1
            if queue and way != sign:
                made += (price - queue.popleft()) * sign
            else:
                queue.append(price)
                sign = way
    position = after(*(traded(n, signed, price) for n, (signed, price) in enumerate(moves)))
    assert (position.quantity, position.realised("fifo")) == (len(queue) * sign, made)
    assert position.cost("fifo") == sum(queue) * sign


@UNHURRIED
@given(moves=moves)
def test_average_cost_is_what_fractions_say(moves: list[tuple[int, int]]):
    held, average, made = 0, Fraction(0), Fraction(0)
    for signed, price in moves:
        closed = min(abs(held), abs(signed)) if held * signed < 0 else 0
        made += closed * (price - average) * (1 if held > 0 else -1)
        opened = abs(signed) - closed
        if opened:
            average = (abs(held) * average + opened * price) / (abs(held) + opened) if not closed else Fraction(price)
        held += signed
    position = after(*(traded(n, signed, price) for n, (signed, price) in enumerate(moves)))
    assert position.quantity == held
    assert abs(Fraction(position.realised("average")) - made) < Fraction(1, 10**9)
    assert abs(Fraction(position.cost("average")) - held * average) < Fraction(1, 10**9)


@UNHURRIED
@given(done=executions(most=5), data=st.data(), side=st.sampled_from(["buy", "sell"]))
def test_whatever_way_fills_are_told_the_position_is_the_same(done: list[Any], data: st.DataObject, side: Side):
    order = Order(ORDER, ACCOUNT, "paper", terms(10**6, side))
    told = [Report("fill", (one,)) for one in done]
    more = [Report("accepted", (), (one,)) for one in totals_of(done)]
    chosen = data.draw(st.lists(st.sampled_from([*told, *more]), max_size=6)) if done else []
    plain = run(order, "submit_sent", *told).order
    mixed = run(order, "submit_sent", *data.draw(st.permutations([*told, *chosen]))).order
    assert rebuild(fills(plain)) == rebuild(fills(mixed))


def test_a_spread_fills_a_position_for_each_leg():
    legs = (Leg(CALL, "buy"), Leg(PUT, "sell"))
    order = Order(ORDER, ACCOUNT, "paper", terms(5, legs=legs))
    told = Report("fill", (execution("a", 5, "2.5"), execution("a", 5, "1.5", leg=1)))
    book = rebuild(fills(run(order, "submit_sent", told).order))
    assert {key: position.quantity for key, position in book.items()} == {CALL.key: 5, PUT.key: -5}


def test_long_through_zero_to_short_by_example():
    position = after(traded(0, 100, 10), traded(1, 50, 16), traded(2, -120, 20, fee=Decimal(1)), traded(3, -80, 5))
    assert position.quantity == -50
    assert position.realised("fifo") == 100 * 10 + 20 * 4 + 30 * (5 - 16)
    assert position.realised("average") == 120 * (20 - 12) + 30 * (5 - 12)
    assert (position.fees, position.entry_price("fifo")) == (1, 5)
    assert position.unrealised(Decimal(4), "fifo") == 50
    assert position.cash == -1000 - 800 + 2400 - 1 + 400


def test_an_option_counts_a_hundred_times():
    position = after(traded(0, -2, "1.50", CALL), traded(1, 1, "0.50", CALL), of=CALL)
    assert (position.cash, position.realised("fifo"), position.value(Decimal(1))) == (250, 100, -100)


def test_a_fee_in_kind_takes_coins_and_their_worth():
    position = after(traded(0, 1, 100, BTC, fee_quantity=Decimal("0.0025")), of=BTC)
    assert (position.quantity, position.fees, position.cash) == (Decimal("0.9975"), Decimal("0.25"), -100)


def test_splits_by_example():
    forward = after(traded(0, 10, 90), Split("s", AAPL, at(1), Decimal(3), Decimal(1)))
    assert (forward.quantity, forward.entry_price("fifo"), forward.cost("average")) == (30, 30, 900)

    reverse = after(traded(0, 25, 1), Split("s", AAPL, at(1), Decimal(1), Decimal(10), Decimal(2), Decimal(6)))
    assert (reverse.quantity, reverse.cash, reverse.cost("fifo"), reverse.realised("fifo")) == (2, -19, 20, 1)

    rounded_up = after(traded(0, 25, 1), Split("s", AAPL, at(1), Decimal(1), Decimal(10), Decimal(3)))
    assert (rounded_up.quantity, rounded_up.cost("fifo"), rounded_up.realised("fifo")) == (3, 25, 0)


def test_what_expires_worthless_is_kept_by_the_seller_and_lost_by_the_buyer():
    for sign in (1, -1):
        position = after(traded(0, 3 * sign, 2, CALL), Expiry("e", CALL, at(1), Decimal(3)), of=CALL)
        assert (position.quantity, position.realised("fifo"), position.cash) == (0, -600 * sign, -600 * sign)


def test_a_cash_settled_option_expires_at_its_settlement_value():
    position = after(traded(0, 1, 2, CALL), Expiry("e", CALL, at(1), Decimal(1), Decimal(7)), of=CALL)
    assert (position.quantity, position.realised("average")) == (0, 500)


@pytest.mark.parametrize(
    ("option", "kind", "shares"),
    [(CALL, "exercised", 200), (PUT, "exercised", -200), (CALL, "assigned", -200), (PUT, "assigned", 200)],
)
def test_delivery_closes_the_option_and_trades_the_shares_at_the_strike(option: Any, kind: Delivery, shares: int):
    held = 2 if kind == "exercised" else -2
    gone, came = delivery(option, kind, Decimal(2), at=at(1), fact_id="x", order_id=ORDER)
    book = rebuild([traded(0, held, 3, option), gone, came])
    assert book[option.key].quantity == 0
    assert book[option.key].realised("fifo") == -held * 300
    assert (book["AAPL"].quantity, book["AAPL"].entry_price("average")) == (shares, 200)
    assert book["AAPL"].cash == -shares * 200


def test_what_cannot_have_happened_is_refused():
    held = after(traded(0, 1, 2, CALL), of=CALL)
    adjusted = instrument("AAPL1261218C00200000")
    assert isinstance(adjusted, Option)
    for fact in (
        traded(1, 1, 1),
        Expiry("e", CALL, at(1), Decimal(2)),
        traded(1, 1, "NaN", CALL),
        Split("s", CALL, at(1), Decimal(0), Decimal(1)),
        Split("s", CALL, at(1), Decimal(1), Decimal(1), Decimal(-1)),
    ):
        with pytest.raises(BadFact):
            apply(held, fact)
    with pytest.raises(BadFact):
        delivery(adjusted, "exercised", Decimal(1), at=at(1), fact_id="x", order_id=ORDER)
