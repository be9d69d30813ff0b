"""Brackets and OCOs: what is sent when, and that both ways out never close more than there was."""

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.broker.domain.exits import Watched, aim_of, exit_terms, plan
from services.broker.domain.lifecycle import apply, filled
from services.broker.domain.orders import OVER, Exits, Order, Report
from services.broker.domain.risk import Quote
from shared.contracts.broker import ExitTerms, LegTerms, OrderTerms
from tests.broker.brokerage import Brokerage
from tests.broker.samples import ACCOUNT, T0, UNHURRIED, at, execution, terms

D = Decimal
EXITS = Exits(D(110), D(90))
BRACKET = terms(10, limit=D(100), order_class="bracket", exits=EXITS)
WIRE = ExitTerms(take_profit=D(110), stop_loss=D(90))


def market(bid: Any) -> Quote:
    return Quote(D(bid), D(bid) + D("0.02"), T0)


def sent(aim: Any, quantity: Any, *told: Report) -> Order:
    """An exit that works, and what was told of it then."""
    made = Order(UUID(int=9), ACCOUNT, "memory", exit_terms(BRACKET, aim, D(quantity), frozenset({"gtc"})))
    for one in (Report("submit_sent"), Report("accepted"), *told):
        made = apply(made, one).order
    return made


def watched(protected: Any, *children: Order, **changes: Any) -> Watched:
    done = sum((filled(one) for one in children), D(0))
    plain: dict[str, Any] = {"settled": True, "held": D(protected) - done, "quote": market(100), **changes}
    known = [(one, T0) for one in children]
    return Watched(EXITS, sells=True, protected=D(protected), children=known, **plain)


def test_nothing_is_sent_before_the_entry_is_filled_and_all_is_over_once_it_never_will_be() -> None:
    assert plan(watched(0, settled=False), T0).place == 0
    assert not plan(watched(0, settled=False), T0).over
    assert plan(watched(0), T0).over


def test_what_is_filled_of_the_entry_is_protected_by_a_stop() -> None:
    made = plan(watched(4, settled=False), T0)
    assert (made.aim, made.place) == ("stop_loss", 4)
    asked = exit_terms(BRACKET, made.aim, made.place, frozenset({"gtc", "day"}))
    assert (asked.type, asked.stop, asked.legs[0].side, asked.time_in_force) == ("stop", 90, "sell", "gtc")
    limited = terms(10, order_class="bracket", exits=Exits(D(110), D(90), D(89)))
    assert exit_terms(limited, "stop_loss", D(1), frozenset({"day"})).limit == 89


def test_later_fills_of_an_entry_are_gathered_while_it_works_and_protected_at_once_when_it_is_over() -> None:
    waits = plan(watched(7, sent("stop_loss", 4), settled=False), at(1))
    assert (waits.place, waits.again_at) == (0, at(5))
    assert plan(watched(7, sent("stop_loss", 4), settled=False), at(5)).place == 3
    assert plan(watched(7, sent("stop_loss", 4)), at(1)).place == 3


def test_at_the_take_profit_the_stop_goes_before_the_limit_comes_for_what_is_left() -> None:
    stop = sent("stop_loss", 10, Report("fill", (execution("x", 2),)))
    made = plan(watched(10, stop, quote=market(110)), T0)
    assert (made.cancel, made.place) == ((stop,), 0)
    asked = apply(stop, Report("cancel_asked")).order
    waits = plan(watched(10, asked, quote=market(110)), T0)
    assert (waits.cancel, waits.place) == ((), 0)
    gone = apply(asked, Report("canceled")).order
    made = plan(watched(10, gone, quote=market(110)), T0)
    assert (made.aim, made.place) == ("take_profit", 8)
    asked_for = exit_terms(BRACKET, made.aim, made.place, frozenset({"gtc"}))
    assert (asked_for.type, asked_for.limit) == ("limit", 110)


def test_when_the_market_turns_or_nobody_knows_it_the_stop_comes_back() -> None:
    limit = sent("take_profit", 10)
    for quote in (market("109.99"), None):
        assert plan(watched(10, limit, quote=quote), T0).cancel == (limit,)
    assert plan(watched(10, limit, quote=market(111)), T0).cancel == ()


def test_a_stop_for_more_than_is_held_is_taken_back() -> None:
    stop = sent("stop_loss", 10)
    assert plan(watched(10, stop, held=D(6)), T0).cancel == (stop,)
    gone = apply(stop, Report("canceled")).order
    assert plan(watched(10, gone, held=D(6)), T0).place == 6
    assert plan(watched(10, gone, held=D(-6)), T0).over


def test_an_exit_that_is_refused_is_tried_again_ever_more_seldom() -> None:
    refused = apply(sent("stop_loss", 10), Report("rejected")).order
    assert plan(watched(10, refused), at(1)).again_at == at(5)
    assert plan(watched(10, refused), at(5)).place == 10
    assert plan(watched(10, refused, refused, refused), at(6)).again_at == at(20)
    assert plan(watched(10, *[refused] * 90), at(6)).again_at == T0 + timedelta(minutes=15)


def test_what_is_ended_only_takes_back() -> None:
    stop = sent("stop_loss", 10)
    made = plan(watched(10, stop, ended=True), T0)
    assert (made.cancel, made.place, made.over) == ((stop,), 0, False)
    assert plan(watched(10, apply(stop, Report("canceled")).order, ended=True), T0).over


steps = st.lists(
    st.tuples(st.sampled_from(["entry", "fill", "end", "turn", "reject"]), st.integers(1, 9)), min_size=1, max_size=40
)


@UNHURRIED
@given(steps)
def test_whatever_happens_exits_never_close_more_than_was_filled(acts: list[tuple[str, int]]) -> None:
    protected, children, quote, now = 0, list[Order](), market(100), 0
    for number, (act, size) in enumerate(acts):
        now += 10
        works = [one for one in children if one.state not in OVER]
        told: Report | None = None
        match act:
            case "entry":
                protected += size
            case "turn":
                quote = market(110 if size % 2 else 100)
            case "fill" if works:
                left = (works[0].terms.quantity or D(0)) - filled(works[0])
                told = Report("fill", (execution(f"x{number}", min(left, D(size))),))
            case "end" if works and works[0].cancel_wanted:
                told = Report("canceled")
            case "reject" if works and not filled(works[0]):
                told = Report("rejected")
            case _:
                pass
        if told is not None:
            children[children.index(works[0])] = apply(works[0], told).order
        made = plan(watched(protected, *children, quote=quote, settled=size > 5), at(now))
        for one in made.cancel:
            children[children.index(one)] = apply(one, Report("cancel_asked")).order
        if made.place:
            again = exit_terms(BRACKET, made.aim, made.place, frozenset({"gtc"}))
            fresh = Order(UUID(int=100 + number), ACCOUNT, "memory", again)
            for one in (Report("submit_sent"), Report("accepted")):
                fresh = apply(fresh, one).order
            children.append(fresh)
        done = sum((filled(one) for one in children), D(0))
        open_ = [one for one in children if one.state not in OVER]
        may = sum(((one.terms.quantity or D(0)) - filled(one) for one in open_), D(0))
        assert done + may <= protected
        assert len({aim_of(one) for one in open_}) <= 1, "both are at the venue"


# Through the service


async def children(brokerage: Brokerage, order_id: UUID) -> list[tuple[str, str, Decimal]]:
    """Return (type, state, quantity) of what was sent for an order, oldest first."""
    found = await brokerage.rows("select * from orders where parent = :id order by created_at, id", id=order_id)
    return [(one["terms"]["type"], one["state"], D(one["terms"]["quantity"])) for one in found]


async def working(brokerage: Brokerage, order_id: UUID) -> UUID:
    (found,) = await brokerage.rows("select id from orders where parent = :id and state = 'accepted'", id=order_id)
    one: UUID = found["id"]
    return one


async def bracket(brokerage: Brokerage, account: UUID) -> UUID:
    return await brokerage.place(account, quantity=10, order_class="bracket", exits=WIRE)


async def fill(brokerage: Brokerage, account: UUID, order_id: UUID, quantity: Any, price: Any = 100) -> None:
    await brokerage.desk(account).fill(order_id, D(quantity), D(price))
    await brokerage.reconcile(account)


async def rise(brokerage: Brokerage) -> None:
    """Let the market reach the take-profit."""
    brokerage.clock.advance(1)
    await brokerage.quotes(AAPL=("110.50", "110.52"))
    await brokerage.settle()


async def over(brokerage: Brokerage, order_id: UUID) -> bool:
    (found,) = await brokerage.rows("select over from exits where order_id = :id", id=order_id)
    return bool(found["over"])


async def test_a_bracket_goes_in_is_protected_and_takes_its_profit(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    entry = await bracket(brokerage, account)
    assert await children(brokerage, entry) == []
    await fill(brokerage, account, entry, 10)
    assert await children(brokerage, entry) == [("stop", "accepted", 10)]
    await rise(brokerage)
    assert await children(brokerage, entry) == [("stop", "canceled", 10), ("limit", "accepted", 10)]
    await fill(brokerage, account, await working(brokerage, entry), 10, 110)
    assert await brokerage.held(account) == {}
    assert await over(brokerage, entry)
    assert brokerage.desk(account).submits()[0] == entry
    shown = (await brokerage.ask("GET", f"/broker/orders?account_id={account}"))[1]["orders"]
    parents = {one["id"]: one["parent"] for one in shown}
    assert parents.pop(str(entry)) is None
    assert list(parents.values()) == [str(entry)] * 2


async def test_when_the_stop_fills_there_is_no_take_profit_any_more(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    entry = await bracket(brokerage, account)
    await fill(brokerage, account, entry, 10)
    await fill(brokerage, account, await working(brokerage, entry), 10, 89)
    await rise(brokerage)
    assert await children(brokerage, entry) == [("stop", "filled", 10)]
    assert await brokerage.held(account) == {}


async def test_a_canceled_entry_keeps_what_it_filled_protected_and_a_second_cancel_ends_that(
    brokerage: Brokerage,
) -> None:
    account = await brokerage.account()
    entry = await bracket(brokerage, account)
    await fill(brokerage, account, entry, 4)
    await brokerage.cancel(account, entry)
    assert await children(brokerage, entry) == [("stop", "accepted", 4)]
    await brokerage.cancel(account, entry)
    assert await children(brokerage, entry) == [("stop", "canceled", 4)]
    assert await over(brokerage, entry)
    never = await bracket(brokerage, account)
    await brokerage.cancel(account, never)
    assert await over(brokerage, never)


async def test_canceling_or_closing_ends_the_exits(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    one, other = await bracket(brokerage, account), await bracket(brokerage, account)
    await fill(brokerage, account, one, 10)
    await fill(brokerage, account, other, 10)
    await brokerage.cancel(account, await working(brokerage, one))
    assert (await children(brokerage, one), await over(brokerage, one)) == ([("stop", "canceled", 10)], True)
    closing = await brokerage.close_position(account)
    await brokerage.settle(wholly=True)
    assert await children(brokerage, other) == [("stop", "canceled", 10)]
    assert (await brokerage.order(closing))["terms"]["quantity"] == "20"


async def test_an_oco_protects_what_is_held_and_no_more(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    bought = await brokerage.place(account, quantity=10)
    await fill(brokerage, account, bought, 10)
    legs = (LegTerms(symbol="AAPL", side="sell"),)
    given: dict[str, Any] = {"legs": legs, "type": "limit", "order_class": "oco", "exits": WIRE}
    oco = await brokerage.place_terms(account, OrderTerms(quantity=D(6), **given))
    row = await brokerage.order(oco)
    assert (row["state"], row["replaced_by"]) == ("replaced", await working(brokerage, oco))
    assert await children(brokerage, oco) == [("stop", "accepted", 6)]
    assert oco not in brokerage.desk(account).submits()
    too_much = await brokerage.place_terms(account, OrderTerms(quantity=D(5), **given))
    assert await brokerage.codes(too_much) == ["NOTHING_HELD"]
    await brokerage.cancel(account, oco)
    assert await children(brokerage, oco) == [("stop", "canceled", 6)]


async def test_a_refused_stop_is_sent_again(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    entry = await bracket(brokerage, account)
    await brokerage.desk(account).fill(entry, D(10), D(100))
    brokerage.desk(account).refuse_next("not today")
    await brokerage.reconcile(account)
    assert await children(brokerage, entry) == [("stop", "rejected", 10)]
    brokerage.clock.advance(5)
    await brokerage.settle()
    assert await children(brokerage, entry) == [("stop", "rejected", 10), ("stop", "accepted", 10)]


async def test_an_exit_is_not_replaced_and_bad_exits_are_refused(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    entry = await bracket(brokerage, account)
    await fill(brokerage, account, entry, 10)
    await brokerage.replace(account, await working(brokerage, entry), quantity=5)
    (refused,) = brokerage.events("broker.order.rejected.v1")
    assert refused["codes"] == ["EXIT_NOT_REPLACED"]
    wrong = ExitTerms(take_profit=D(90), stop_loss=D(110))
    order_id = await brokerage.place(account, quantity=10, order_class="bracket", exits=wrong)
    assert await brokerage.codes(order_id) == ["EXITS_DISAGREE"]
