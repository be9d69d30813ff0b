"""The states of an order, and its fills: counted once, never lost, whatever is told in which order."""

from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.domain.instruments import BadInstrument, Crypto, Equity, Option, instrument
from services.broker.domain.lifecycle import apply, average_price, filled, fills, overfilled
from services.broker.domain.orders import (
    OVER,
    STATES,
    Anomaly,
    Fact,
    FillBooked,
    FillWithdrawn,
    IllegalTransition,
    Leg,
    Order,
    Report,
    State,
    StateChanged,
    VenueKind,
    derived_id,
)
from tests.broker.samples import (
    AAPL,
    CALL,
    UNHURRIED,
    any_report,
    execution,
    executions,
    fill,
    order,
    run,
    terms,
    total,
    totals_of,
)

SENT = ("submit_sent",)
WORKS = (*SENT, "accepted")


def codes(facts: tuple[Fact, ...]) -> list[str]:
    return [fact.code for fact in facts if isinstance(fact, Anomaly)]


def illegal(facts: tuple[Fact, ...]) -> list[tuple[str, str]]:
    return [(fact.state, fact.kind) for fact in facts if isinstance(fact, IllegalTransition)]


def ever_filled(of: Order) -> Decimal:
    """What was filled, with what was busted of it."""
    return filled(of) + sum(one.quantity for one in of.executions.values() if one.busted)


def looked_up(kind: VenueKind, **more: Any) -> Report:
    return Report(kind, looked_up=True, **more)


def told_with_a_fill(kind: VenueKind) -> Report:
    return Report(kind, (execution("a", 40),))


# States


@pytest.mark.parametrize(
    ("told", "state"),
    [
        ((), "new"),
        (SENT, "pending_submit"),
        (WORKS, "accepted"),
        ((*WORKS, fill("a", 40)), "partially_filled"),
        ((*WORKS, fill("a", 40), fill("b", 60)), "filled"),
        ((*WORKS, "cancel_asked"), "pending_cancel"),
        ((*WORKS, "cancel_asked", "canceled"), "canceled"),
        ((*WORKS, "cancel_asked", "cancel_rejected"), "accepted"),
        ((*WORKS, fill("a", 1), "cancel_asked", "cancel_rejected"), "partially_filled"),
        ((*WORKS, "cancel_asked", fill("a", 100)), "filled"),
        ((*WORKS, "cancel_asked", fill("a", 40)), "pending_cancel"),
        ((*WORKS, "cancel_asked", fill("a", 40), "canceled"), "canceled"),
        ((*WORKS, "replace_asked", "replaced"), "replaced"),
        ((*WORKS, "replace_asked", "replace_rejected"), "accepted"),
        ((*WORKS, "expired"), "expired"),
        ((*SENT, "rejected"), "rejected"),
        (("refused",), "rejected"),
        (("cancel_asked",), "canceled"),
        ((*SENT, "not_sent"), "new"),
        ((*SENT, "cancel_asked", "not_sent"), "canceled"),
        ((*SENT, "cancel_asked", "accepted"), "pending_cancel"),
        ((*SENT, fill("a", 40)), "partially_filled"),
        ((*SENT, fill("a", 100), "accepted", "outcome_unknown"), "filled"),
        ((*SENT, "outcome_unknown"), "unknown"),
        ((*SENT, "outcome_unknown", "accepted"), "unknown"),
        ((*SENT, "outcome_unknown", fill("a", 100)), "unknown"),
        ((*SENT, "outcome_unknown", looked_up("accepted")), "accepted"),
        ((*SENT, "outcome_unknown", "cancel_asked", looked_up("accepted")), "pending_cancel"),
        ((*SENT, "outcome_unknown", fill("a", 100), looked_up("accepted")), "filled"),
        ((*SENT, "outcome_unknown", fill("a", 100), looked_up("canceled")), "filled"),
        ((*SENT, "outcome_unknown", looked_up("canceled", cumulative=(total(40),))), "canceled"),
        ((*SENT, "outcome_unknown", looked_up("not_found")), "new"),
        ((*SENT, "outcome_unknown", "cancel_asked", looked_up("not_found")), "canceled"),
        ((*SENT, "outcome_unknown", looked_up("not_found"), "refused"), "rejected"),
        ((*SENT, "outcome_unknown", looked_up("not_found"), "accepted"), "accepted"),
        ((*SENT, "outcome_unknown", "accepted", looked_up("not_found")), "unknown"),
        ((*SENT, "outcome_unknown", told_with_a_fill("cancel_rejected"), looked_up("not_found")), "unknown"),
        ((*WORKS, looked_up("not_found")), "unknown"),
    ],
)
def test_an_order_is_what_it_was_told(told: tuple[Report | str, ...], state: State):
    assert run(order(), *told).order.state == state


def test_every_report_that_a_state_does_not_allow_is_told_and_changes_no_state():
    """The whole table, so that a change of it is seen."""
    starts: dict[State, tuple[Report | str, ...]] = {
        "new": (),
        "pending_submit": SENT,
        "accepted": WORKS,
        "partially_filled": (*WORKS, fill("a", 40)),
        "filled": (*WORKS, fill("a", 100)),
        "pending_cancel": (*WORKS, "cancel_asked"),
        "canceled": (*WORKS, "canceled"),
        "replaced": (*WORKS, "replaced"),
        "rejected": (*SENT, "rejected"),
        "expired": (*WORKS, "expired"),
        "unknown": (*SENT, "outcome_unknown"),
    }
    assert set(starts) == set(STATES)
    allowed: dict[str, str] = {
        "submit_sent": "new",
        "not_sent": "pending_submit",
        "outcome_unknown": "pending_submit accepted partially_filled filled pending_cancel canceled replaced rejected "
        "expired unknown",
        "refused": "new",
        "cancel_asked": "new pending_submit accepted partially_filled pending_cancel unknown",
        "replace_asked": "accepted partially_filled",
        "accepted": "pending_submit accepted partially_filled filled pending_cancel canceled replaced rejected expired "
        "unknown",
        "fill": "pending_submit accepted partially_filled filled pending_cancel canceled replaced rejected expired "
        "unknown",
        "filled": "pending_submit accepted partially_filled filled pending_cancel unknown",
        "canceled": "pending_submit accepted partially_filled pending_cancel canceled rejected unknown",
        "replaced": "pending_submit accepted partially_filled pending_cancel replaced unknown",
        "expired": "pending_submit accepted partially_filled pending_cancel expired unknown",
        "rejected": "pending_submit accepted pending_cancel rejected unknown",
        "cancel_rejected": "accepted partially_filled filled pending_cancel canceled replaced rejected expired",
        "replace_rejected": "accepted partially_filled filled pending_cancel canceled replaced rejected expired",
        "not_found": "new accepted partially_filled filled pending_cancel canceled replaced rejected expired unknown",
    }
    for state, told in starts.items():
        start = run(order(), *told).order
        assert start.state == state
        for kind, states in allowed.items():
            step = apply(start, Report(kind, looked_up=True))  # pyright: ignore[reportArgumentType]
            assert illegal(step.facts) == ([] if state in states.split() else [(state, kind)])
            if illegal(step.facts):
                assert step.order.state == state


@UNHURRIED
@given(told=st.lists(any_report(), max_size=12))
def test_only_fills_leave_a_state_that_is_over_and_only_a_look_up_leaves_unknown(told: list[Report]):
    now = order(50)
    for report in told:
        step = apply(now, report)
        changed = [fact for fact in step.facts if isinstance(fact, StateChanged)]
        assert changed == ([StateChanged(now.state, step.order.state)] if now.state != step.order.state else [])
        if changed and now.state in OVER:
            assert filled(step.order) > filled(now)
        if changed and now.state == "unknown":
            assert report.looked_up
        assert ever_filled(step.order) >= ever_filled(now)
        assert (step.order.state == "filled") <= (ever_filled(step.order) >= 50)
        now = step.order


@UNHURRIED
@given(told=st.lists(any_report(), max_size=12))
def test_an_order_is_sent_again_only_after_a_look_up_did_not_find_it_or_it_never_left(told: list[Report]):
    """The one state from which it is sent is `new`."""
    now, may = order(50), True
    for report in told:
        step = apply(now, report)
        if report.kind == "submit_sent" and not illegal(step.facts):
            assert may
            may = False
        elif step.order.state == "new" and now.state != "new":
            assert report.kind == "not_sent" or (report.kind == "not_found" and now.state == "unknown" and not now.seen)
            may = True
        now = step.order


# Fills


@UNHURRIED
@given(done=executions(), data=st.data())
def test_executions_and_totals_in_any_order_and_number_leave_the_executions(done: list[Any], data: st.DataObject):
    single = [Report("fill", (one,)) for one in done]
    sums = [Report("accepted", (), (one,)) for one in totals_of(done)]
    both = [Report("fill", (one,), (so_far,)) for one, so_far in zip(done, totals_of(done), strict=True)]
    more = data.draw(st.lists(st.sampled_from([*single, *sums, *both]), max_size=8)) if done else []
    told = data.draw(st.permutations([*data.draw(st.sampled_from([single, both])), *more]))
    quantity = sum((one.quantity for one in done), Decimal(0))

    step = run(order(quantity or 1), *WORKS, *told)

    assert {(one.quantity, one.price, one.at) for one in fills(step.order)} == {
        (one.quantity, one.price, one.at) for one in done
    }
    assert not any(one.provisional for one in fills(step.order))
    assert filled(step.order) == quantity
    assert step.order.state == ("filled" if done else "accepted")
    assert codes(step.facts) == illegal(step.facts) == []


@UNHURRIED
@given(done=executions(legs=2), data=st.data())
def test_the_same_reports_in_another_order_leave_the_same_fills(done: list[Any], data: st.DataObject):
    """Losses too: some executions are never told, and the totals stand for them."""
    told = [Report("fill", (one,)) for one in done] + [Report("accepted", (), (one,)) for one in totals_of(done)]
    told += [Report("accepted", (replace(one, busted=True),)) for one in done]
    told += [Report(kind) for kind in ("canceled", "expired", "rejected", "accepted", "filled")]
    chosen = data.draw(st.lists(st.sampled_from(told), max_size=12))
    spread = replace(order(40), terms=terms(40, legs=(Leg(AAPL, "buy"), Leg(CALL, "sell"))))

    one, other = (run(spread, *WORKS, *data.draw(st.permutations(chosen))) for _ in range(2))

    assert fills(one.order) == fills(other.order)
    assert filled(one.order) == filled(other.order)


@UNHURRIED
@given(told=st.lists(any_report(), max_size=12))
def test_the_facts_of_fills_add_up_to_the_fills_that_count(told: list[Report]):
    now, standing = order(50), dict[str, Any]()
    for report in told:
        step = apply(now, report)
        for fact in step.facts:
            if isinstance(fact, FillWithdrawn):
                assert standing.pop(fact.fill.id) == fact.fill
                assert fact.fill.provisional or "TRADE_BUSTED" in codes(step.facts)
            if isinstance(fact, FillBooked):
                assert fact.fill.id not in standing
                standing[fact.fill.id] = fact.fill
        now = step.order
        assert standing == {one.id: one for one in fills(now)}
        again = apply(now, report)
        assert not [fact for fact in again.facts if isinstance(fact, (FillBooked, FillWithdrawn))]


def test_a_total_books_what_is_missing_at_the_price_that_is_left():
    step = run(order(), *WORKS, fill("a", 40, 10), Report("accepted", (), (total(100, 13),)))
    first, second = fills(step.order)
    assert (first.quantity, first.price, first.provisional) == (40, 10, False)
    assert (second.quantity, second.price, second.provisional) == (60, 15, True)
    assert step.order.state == "filled"

    known = apply(step.order, fill("b", 60, 15))
    assert [type(fact) for fact in known.facts] == [FillWithdrawn, FillBooked]
    assert [one.provisional for one in fills(known.order)] == [False, False]


def test_the_recorded_replay_of_alpaca_books_one_fill():
    one = Report("fill", (execution("a0b4b946", "129.7", "0.0851119"),), (total("129.7", "0.0851119"),))
    step = run(order("129.7", "sell"), *WORKS, "accepted", one, "accepted", one, "accepted", one)
    assert [fact.fill.quantity for fact in step.facts if isinstance(fact, FillBooked)] == [Decimal("129.7")]
    assert step.order.state == "filled"
    assert illegal(step.facts) == []


@pytest.mark.parametrize("end", ["canceled", "expired", "replaced", "rejected"])
def test_a_late_fill_counts_and_says_so(end: str):
    over = run(order(), *WORKS, end).order
    some, whole = apply(over, fill("a", 40)), apply(over, fill("a", 100))
    assert codes(some.facts) == codes(whole.facts) == ["LATE_FILL"]
    assert (filled(some.order), filled(whole.order)) == (40, 100)
    assert some.order.state == ("partially_filled" if end == "rejected" else end)
    assert whole.order.state == "filled"


@pytest.mark.parametrize("end", ["cancel_asked", "refused"])
def test_an_order_that_was_given_up_and_arrives_after_all_says_so_once(end: str):
    over = run(order(), *SENT, "outcome_unknown", looked_up("not_found"), end).order
    step = apply(over, looked_up("accepted", venue_order_id="v1"))
    assert (step.order.state, codes(step.facts)) == (over.state, ["STILL_WORKS"])
    assert apply(step.order, looked_up("accepted")).facts == ()
    ended = apply(step.order, Report("canceled"))
    assert (ended.order.state, ended.facts) == (over.state, ())
    told_of = run(order(), *WORKS, "canceled").order
    assert apply(told_of, looked_up("accepted")).facts == ()  # a frame that was overtaken


def test_more_than_asked_for_is_counted_and_told():
    step = run(order(), *WORKS, fill("a", 90), fill("b", 30))
    assert (filled(step.order), overfilled(step.order), step.order.state) == (120, 20, "filled")
    assert codes(step.facts) == ["OVERFILL"]
    assert codes(apply(step.order, fill("b", 30)).facts) == []


def test_what_is_wrong_with_a_fill_is_told_and_does_not_count():
    bad = (execution("a", "NaN"), execution("b", -1), execution("c", 1, "Infinity"), execution("d", 1, leg=3))
    step = run(order(), *WORKS, Report("fill", bad), Report("accepted", (), (total(-1),)))
    assert codes(step.facts) == ["BAD_FILL"] * 5
    assert fills(step.order) == ()

    step = run(order(), *WORKS, fill("a", 40), fill("a", 50))
    assert codes(step.facts) == ["EXECUTION_DISAGREES"]
    assert filled(step.order) == 40


def bust(name: str, quantity: Any = 40, price: Any = 10) -> Report:
    return Report("accepted", (replace(execution(name, quantity, price), busted=True),))


def test_a_trade_that_is_busted_counts_no_more_however_often_it_is_told_again():
    step = run(order(), *WORKS, fill("a", 40), fill("b", 60), bust("a"), fill("a", 40), bust("a"))
    assert (filled(step.order), step.order.state, codes(step.facts)) == (60, "filled", ["TRADE_BUSTED"])
    (gone,) = [fact.fill for fact in step.facts if isinstance(fact, FillWithdrawn)]
    assert (gone.quantity, gone.provisional) == (40, False)
    assert average_price(step.order, "AAPL") == (60, 10)
    assert codes(apply(step.order, looked_up("filled")).facts) == [], "nothing is missing that was not busted"


def test_a_bust_may_come_before_its_trade_and_its_total_stands_for_nothing_more():
    step = run(order(), *WORKS, Report("accepted", (), (total(40),)), bust("a"), fill("a", 40))
    assert (fills(step.order), filled(step.order), step.order.state) == ((), 0, "partially_filled")
    assert codes(run(order(), *WORKS, bust("a", 50), fill("a", 40)).facts) == ["TRADE_BUSTED"]
    whole = run(step.order, Report("fill", (execution("b", 60),), (total(60),)), fill("c", 40))
    assert (filled(whole.order), whole.order.state) == (100, "filled")


def test_a_corrected_trade_is_another_one():
    right = Report("accepted", (replace(execution("a", 0), busted=True), execution("b", 40, 11)))
    step = run(order(), *WORKS, fill("a", 40), right, fill("c", 60))
    assert [(one.quantity, one.price) for one in fills(step.order)] == [(40, 11), (60, 10)]
    assert (step.order.state, codes(step.facts)) == ("filled", ["TRADE_BUSTED"])


def test_filled_by_its_venue_s_word_after_a_bust_is_filled():
    step = run(order(), *WORKS, fill("a", 40), bust("a"), fill("b", 60), "filled")
    assert (filled(step.order), step.order.state) == (60, "filled")


def test_filled_without_the_fills_waits_for_them():
    step = run(order(), *WORKS, fill("a", 40), "filled")
    assert (step.order.state, codes(step.facts)) == ("partially_filled", ["FILLS_MISSING"])
    assert apply(step.order, fill("b", 60)).order.state == "filled"


def test_an_order_by_notional_is_filled_when_its_venue_says_so():
    step = run(replace(order(), terms=terms(None, notional=Decimal(500))), *WORKS, fill("a", "33.3"))
    assert step.order.state == "partially_filled"
    assert apply(step.order, Report("filled")).order.state == "filled"


def test_a_spread_is_filled_as_far_as_each_leg_allows():
    spread = replace(order(10), terms=terms(10, legs=(Leg(CALL, "buy", 1), Leg(CALL, "sell", 2))))
    first = run(spread, *WORKS, Report("fill", (execution("a", 10), execution("a", 8, leg=1))))
    assert (first.order.state, filled(first.order)) == ("partially_filled", 4)
    assert apply(first.order, Report("fill", (execution("b", 12, leg=1),))).order.state == "filled"


# Ids and instruments


def test_an_order_derived_again_has_the_same_id():
    assert derived_id(UUID(int=1), 0) == derived_id(UUID(int=1), 0) != derived_id(UUID(int=1), 1)


def test_instruments_are_read_as_people_and_venues_write_them():
    assert instrument(" brk.b ") == Equity("BRK.B")
    assert instrument("btc/usd") == Crypto("BTC", "USD")
    padded = instrument("AAPL  230818C00197500")
    assert isinstance(padded, Option)
    assert (padded.key, padded.strike, padded.multiplier) == ("AAPL230818C00197500", Decimal("197.5"), 100)
    assert instrument("SPXW261218P05000000", "_SPX").underlying == "_SPX"
    assert isinstance(adjusted := instrument("AAPL1261218C00200000"), Option)
    assert adjusted.adjusted


@pytest.mark.parametrize(
    "text", ["", "AAPL;", "AAPL261318C00200000", "AAPL261218C00000000", "/USD", "Ä", "TOOLONGNAME"]
)
def test_what_is_no_instrument_is_refused(text: str):
    with pytest.raises(BadInstrument):
        instrument(text)
