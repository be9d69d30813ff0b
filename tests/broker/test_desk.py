"""The paper venue's desk: money, what is held for orders, cancels and replacements, expiry, settlement of options."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from services.broker.domain.desk import Desk
from services.broker.domain.instruments import Instrument, Option, instrument
from services.broker.domain.margin import Stock, collateral
from services.broker.domain.matching import Book, Model
from services.broker.domain.orders import Fill, Leg, Order, Side, Terms
from services.broker.domain.positions import rebuild
from services.broker.domain.settlement import settle
from services.broker.domain.tickets import Purse, Rules

NOW = datetime(2026, 11, 20, 15, 0, tzinfo=UTC)
ACCOUNT = UUID(int=7)
AAPL, BTC = instrument("AAPL"), instrument("BTC/USD")
LOW, HIGH = instrument("AAPL261218C00095000"), instrument("AAPL261218C00105000")
PUT = instrument("AAPL261218P00095000")
FREE = Model(fee_a_contract=Decimal(0), crypto_fee_bps=Decimal(0))
START = Decimal(100_000)


def hours(now: datetime) -> tuple[datetime, datetime]:
    """Nine to five, every day."""
    day = now.replace(hour=9, minute=0, second=0, microsecond=0)
    if now >= day.replace(hour=17):
        day += timedelta(days=1)
    return day, day.replace(hour=17)


def desk(model: Model = FREE, halted: dict[str, str] | None = None) -> Desk:
    made = Desk(Rules(hours, model, halted=halted or {}), purses={ACCOUNT: Purse(ACCOUNT, START)})
    for of, price in ((AAPL, 100), (BTC, 100), (LOW, 7), (HIGH, 2), (PUT, 3)):
        quote(made, of, price, price)
    return made


def quote(at: Desk, of: Instrument, bid: Any, ask: Any, after_s: float = 0, size: Any = None) -> None:
    now = NOW + timedelta(seconds=after_s)
    size = None if size is None else Decimal(size)
    at.books[of.key] = Book(Decimal(bid), Decimal(ask), now, size, size)
    at.quoted([of.key], now)


def order(number: int, quantity: Any, side: Side = "buy", of: Instrument = AAPL, **changes: Any) -> Order:
    given: dict[str, Any] = {"legs": (Leg(of, side),), "type": "market", "time_in_force": "gtc", **changes}
    terms = Terms(quantity=None if quantity is None else Decimal(quantity), **given)
    return Order(UUID(int=number), ACCOUNT, "paper", terms)


def told(of: Desk, number: int) -> list[str]:
    return [frame.report.kind for frame in of.frames if frame.order_id == UUID(int=number)]


def test_a_market_order_is_filled_at_once_and_told_frame_by_frame():
    venue = desk()
    report = venue.submit(order(1, 10), NOW)
    assert report is not None
    assert report.kind == "filled"
    assert [one.price for one in report.executions] == [100]
    assert told(venue, 1) == ["accepted", "filled"]
    assert [frame.number for frame in venue.frames] == [1, 2]
    assert venue.purses[ACCOUNT].cash == START - 1000


def test_an_id_that_was_seen_is_not_taken_again():
    venue = desk()
    venue.submit(order(1, 10), NOW)
    assert venue.submit(order(1, 10), NOW) is None
    assert venue.purses[ACCOUNT].cash == START - 1000


def test_what_cannot_be_paid_is_not_known_or_is_halted_is_rejected_with_its_code():
    venue = desk(halted={"BTC/USD": "it is halted"})
    orders = [
        order(1, 1001),
        order(2, 1, of=instrument("MSFT")),
        order(3, 1, of=BTC),
        order(4, 1, time_in_force="opg"),
        order(5, 1001, "sell"),
    ]
    reasons = [str(report.reason) for one in orders if (report := venue.submit(one, NOW))]
    codes = [reason.partition(":")[0] for reason in reasons]
    assert codes == ["BUYING_POWER", "UNKNOWN_SYMBOL", "NOT_TRADABLE", "NOT_SUPPORTED", "BUYING_POWER"]
    assert venue.purses[ACCOUNT] == Purse(ACCOUNT, START, frames=5)


def test_crypto_is_not_sold_short_and_not_sold_twice():
    venue = desk()
    venue.submit(order(1, 2, of=BTC), NOW)
    far: dict[str, Any] = {"of": BTC, "type": "limit", "limit": Decimal(200)}
    kinds = [report.kind for n in (2, 3, 4) if (report := venue.submit(order(n, 1, "sell", **far), NOW))]
    assert kinds == ["accepted", "accepted", "rejected"]


def test_working_orders_hold_buying_power_until_they_are_over():
    venue = desk()
    low: dict[str, Any] = {"type": "limit", "limit": Decimal(90)}
    venue.submit(order(1, 1000, **low), NOW)
    assert venue.purses[ACCOUNT].buying_power == 10_000
    refused = venue.submit(order(2, 112, **low), NOW)
    assert refused is not None
    assert refused.kind == "rejected"
    quote(venue, AAPL, 88, 89, size=400)
    assert venue.purses[ACCOUNT].on_hold == 54_000
    venue.cancel(UUID(int=1), NOW)
    assert venue.purses[ACCOUNT].buying_power == START - 400 * 89
    assert told(venue, 1) == ["accepted", "fill", "canceled"]


def test_a_short_sale_is_covered_wholly_and_given_free_when_it_is_bought_back():
    venue = desk()
    venue.submit(order(1, 600, "sell"), NOW)
    assert venue.purses[ACCOUNT].cash == 160_000
    assert venue.purses[ACCOUNT].buying_power == 40_000
    quote(venue, AAPL, 110, 110)
    venue.submit(order(2, 600), NOW)
    assert venue.purses[ACCOUNT].buying_power == START - 6000


def test_a_spread_ties_up_its_width_and_a_naked_option_its_strike():
    legs = (Leg(LOW, "sell"), Leg(HIGH, "buy"))
    venue = desk()
    venue.submit(order(1, 1, legs=legs, order_class="multi_leg"), NOW)
    assert venue.purses[ACCOUNT].buying_power == START + 500 - 1000
    naked = desk()
    naked.submit(order(1, 1, "sell", PUT), NOW)
    assert naked.purses[ACCOUNT].buying_power == START + 300 - 9500
    covered = desk()
    covered.submit(order(1, 100), NOW)
    covered.submit(order(2, 1, "sell", HIGH), NOW)
    assert covered.purses[ACCOUNT].tied == 0


def test_ioc_ends_with_what_it_got_and_fok_with_nothing():
    venue = desk()
    quote(venue, AAPL, 100, 100, size=30)
    part = venue.submit(order(1, 40, time_in_force="ioc"), NOW)
    assert part is not None
    assert [one.quantity for one in part.executions] == [30]
    assert told(venue, 1) == ["accepted", "fill", "canceled"]
    venue.submit(order(2, 40, time_in_force="fok"), NOW)
    assert told(venue, 2) == ["accepted", "canceled"]


def test_what_one_order_took_of_a_quote_the_next_does_not_get():
    venue = desk()
    for number in (1, 2):
        venue.submit(order(number, 20, type="limit", limit=Decimal(95)), NOW)
    quote(venue, AAPL, 94, 95, size=30)
    assert [venue.tickets[UUID(int=number)].working.filled for number in (1, 2)] == [20, 10]


def test_nothing_is_filled_outside_the_session_nor_by_an_old_quote_but_crypto_always_trades():
    venue, evening = desk(), NOW.replace(hour=20)
    quote(venue, AAPL, 100, 100, 5 * 3600)
    quote(venue, BTC, 100, 100, 5 * 3600)
    venue.submit(order(1, 1), evening)
    venue.submit(order(2, 1, of=BTC), evening)
    assert [told(venue, n)[-1] for n in (1, 2)] == ["accepted", "filled"]
    venue.submit(order(3, 1, of=BTC), evening + timedelta(seconds=61))
    assert told(venue, 3) == ["accepted"]


def test_a_day_order_expires_with_its_session_and_a_gtc_order_does_not():
    venue = desk()
    for number, tif in ((1, "day"), (2, "gtc")):
        venue.submit(order(number, 1, type="limit", limit=Decimal(50), time_in_force=tif), NOW)
    ticket = venue.tickets[UUID(int=1)]
    assert ticket.due_at == NOW.replace(hour=17)
    venue.tick(ticket, NOW.replace(hour=17))
    quote(venue, AAPL, 100, 100, 2 * 3600)
    assert [venue.tickets[UUID(int=n)].state for n in (1, 2)] == ["expired", "accepted"]
    assert venue.purses[ACCOUNT].on_hold == 50


def test_orders_cancels_and_replacements_take_their_time():
    venue = desk(replace(FREE, latency=timedelta(seconds=2)))
    venue.submit(order(1, 1), NOW)
    assert told(venue, 1) == ["accepted"]
    quote(venue, AAPL, 100, 100, 1)
    assert told(venue, 1) == ["accepted"]
    quote(venue, AAPL, 101, 101, 2)
    assert told(venue, 1) == ["accepted", "filled"]
    low: dict[str, Any] = {"type": "limit", "limit": Decimal(90)}
    venue.submit(order(2, 10, **low), NOW)
    venue.submit(order(3, 10, **low), NOW)
    assert venue.cancel(UUID(int=2), NOW + timedelta(seconds=3)) is None
    assert venue.replace(UUID(int=3), order(4, 5, **low), NOW + timedelta(seconds=3)) is None
    quote(venue, AAPL, 90, 90, 4)
    assert [told(venue, n)[-1] for n in (2, 3)] == ["filled", "filled"]
    quote(venue, AAPL, 90, 90, 5)
    assert told(venue, 3)[-1] == "replace_rejected"
    assert venue.tickets[UUID(int=4)].state == "void"
    assert told(venue, 4) == []


def test_a_replacement_on_its_way_does_not_take_the_place_of_an_order_that_fills_meanwhile():
    venue = desk(replace(FREE, latency=timedelta(seconds=2)))
    low: dict[str, Any] = {"type": "limit", "limit": Decimal(90)}
    venue.submit(order(1, 10, **low), NOW)
    quote(venue, AAPL, 90, 90, 3, size=4)
    assert venue.replace(UUID(int=1), order(2, 6, **low), NOW + timedelta(seconds=4)) is None
    quote(venue, AAPL, 90, 90, 5, size=3)  # with the six of the new order that would be thirteen
    quote(venue, AAPL, 91, 91, 6)
    assert told(venue, 1)[-1] == "replace_rejected"
    assert (venue.tickets[UUID(int=1)].state, venue.tickets[UUID(int=2)].state) == ("accepted", "void")
    assert venue.replace(UUID(int=1), order(3, 3, **low), NOW + timedelta(seconds=7)) is None
    quote(venue, AAPL, 91, 91, 9)
    assert told(venue, 1)[-1] == "replaced"
    quote(venue, AAPL, 90, 90, 10)
    assert sum(one.quantity for _, one in venue.executions) == 10


def test_a_replacement_takes_the_old_order_s_place_or_leaves_it():
    venue = desk()
    venue.submit(order(1, 1000, type="limit", limit=Decimal(90)), NOW)
    dear = venue.replace(UUID(int=1), order(2, 2000, type="limit", limit=Decimal(90)), NOW)
    assert dear is not None
    assert dear.kind == "replace_rejected"
    assert venue.purses[ACCOUNT].on_hold == 90_000
    assert UUID(int=2) not in venue.tickets
    fine = venue.replace(UUID(int=1), order(3, 1000, type="limit", limit=Decimal(100)), NOW)
    assert fine is not None
    assert (fine.kind, fine.replaced_by) == ("replaced", UUID(int=3))
    assert told(venue, 1) == ["accepted", "replace_rejected", "replaced"]
    assert told(venue, 3) == ["accepted", "filled"]
    assert venue.purses[ACCOUNT].on_hold == 0


def option(of: Instrument) -> Option:
    assert isinstance(of, Option)
    return of


def test_an_option_in_the_money_by_a_cent_delivers_shares_and_one_that_is_not_is_gone():
    for close, cash, shares in (("105.01", START - 200 - 10_500, 100), ("105", START - 200, 0)):
        venue = desk()
        venue.submit(order(1, 1, of=HIGH), NOW)
        venue.submit(order(2, 9, of=HIGH, type="limit", limit=Decimal(1)), NOW)
        facts = settle(venue, ACCOUNT, option(HIGH), Decimal(close), NOW)
        held = {key: one.stock.quantity for key, one in venue.holdings[ACCOUNT, "AAPL"].items()}
        assert held.get(HIGH.key) == 0
        assert held.get("AAPL", 0) == shares
        assert venue.purses[ACCOUNT].cash == cash
        assert venue.tickets[UUID(int=2)].state == "expired"
        assert len(facts) == 1 + (shares > 0)
        assert settle(venue, ACCOUNT, option(HIGH), Decimal(close), NOW) == ()


def test_a_short_option_in_the_money_is_assigned_and_an_index_settled_in_money():
    venue = desk()
    venue.submit(order(1, 1, "sell", PUT), NOW)
    settle(venue, ACCOUNT, option(PUT), Decimal(90), NOW)
    assert venue.holdings[ACCOUNT, "AAPL"]["AAPL"].stock.quantity == 100
    assert venue.purses[ACCOUNT].buying_power == START + 300 - 9500
    index = instrument("SPXW261218C05000000", "_SPX")
    quote(venue, index, 10, 10)
    venue.submit(order(2, 1, of=index), NOW)
    before = venue.purses[ACCOUNT].cash
    settle(venue, ACCOUNT, option(index), Decimal("5012.5"), NOW)
    assert venue.purses[ACCOUNT].cash == before + 1250


def test_a_long_option_that_expires_before_covers_nothing():
    early = instrument("AAPL261120C00105000")
    short = Stock(LOW, Decimal(-1))
    assert collateral([short, Stock(HIGH, Decimal(1))]) == 1000
    assert collateral([short, Stock(early, Decimal(1))]) == 9500


prices = st.integers(50, 150)
commands = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from([AAPL, BTC, LOW, HIGH, PUT]),
        st.sampled_from(["buy", "sell"]),
        st.sampled_from(["market", "limit", "stop", "stop_limit", "trailing_stop"]),
        st.sampled_from(["gtc", "ioc", "fok"]),
        st.integers(1, 300),
        prices,
    ),
    st.tuples(st.just("spread"), st.booleans(), st.integers(1, 20), st.integers(-20, 20)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("replace"), st.integers(0, 20), st.integers(1, 300), prices),
    st.tuples(
        st.just("quote"), st.sampled_from([AAPL, BTC, LOW, HIGH, PUT]), prices, st.integers(-1, 3), st.integers(0, 200)
    ),
    st.tuples(st.just("settle"), st.sampled_from([LOW, HIGH, PUT]), prices),
)
MODEL = Model(Decimal(30), Decimal("0.7"), timedelta(), Decimal("0.0035"), Decimal("0.65"), Decimal(25))


def play(script: list[Any]) -> tuple[Desk, list[Any]]:
    """Carry out a script; returns the desk and the facts of settlements. Prices below zero make no difference."""
    venue, facts = desk(MODEL), list[Any]()
    for number, (what, *args) in enumerate(script, 1):
        ids = sorted(venue.tickets)
        if what == "submit":
            of, side, kind, tif, quantity, price = args
            changes: dict[str, Any] = {
                **({"limit": Decimal(price)} if "limit" in kind else {}),
                **({"stop": Decimal(price)} if kind.startswith("stop") else {}),
                **({"trail_amount": Decimal(3)} if kind == "trailing_stop" else {}),
            }
            venue.submit(order(number, quantity, side, of, type=kind, time_in_force=tif, **changes), NOW)
        elif what == "spread":
            sells, quantity, limit = args
            legs = (Leg(LOW, "sell" if sells else "buy"), Leg(HIGH, "buy" if sells else "sell", 2))
            kinds: dict[str, Any] = {"type": "limit", "limit": Decimal(limit), "order_class": "multi_leg"}
            venue.submit(order(number, quantity, legs=legs, **kinds), NOW)
        elif what == "quote":
            of, bid, width, size = args
            quote(venue, of, bid, bid + width, size=size)
        elif what == "settle":
            facts += settle(venue, ACCOUNT, option(args[0]), Decimal(args[1]), NOW + timedelta(seconds=number))
        elif (working := [one for one in ids if venue.tickets[one].state == "accepted"]) and what == "cancel":
            venue.cancel(working[args[0] % len(working)], NOW)
        elif working:
            chosen = venue.tickets[working[args[0] % len(working)]]
            terms = chosen.working.terms
            if terms.type == "limit" and len(terms.legs) == 1:
                by = replace(terms, quantity=Decimal(args[1]), limit=Decimal(args[2]))
                venue.replace(chosen.id, Order(UUID(int=number), ACCOUNT, "paper", by), NOW)
    return venue, facts


@settings(max_examples=150)
@given(st.lists(commands, max_size=40))
def test_money_and_positions_are_the_sum_of_what_happened_whatever_it_was(script: list[Any]):
    venue, facts = play(script)
    purse, tickets = venue.purses[ACCOUNT], venue.tickets
    for ticket_id, one in venue.executions:
        leg = tickets[ticket_id].working.terms.legs[one.leg]
        facts.append(Fill(one.id, ticket_id, leg.instrument, leg.side, one.quantity, one.price, one.at, one.fee))
    # Order does not matter to the sums, and an expiry that comes before its fill would be refused.
    traded = rebuild(fact for fact in facts if isinstance(fact, Fill))
    settled = [fact for fact in facts if not isinstance(fact, Fill)]
    held = {key: one.stock.quantity for family in venue.holdings.values() for key, one in family.items()}
    gone = {fact.instrument.key for fact in settled}
    assert purse.cash == START + sum(one.cash for one in traded.values())
    assert all(
        quantity == (traded[key].quantity if key in traded else 0) for key, quantity in held.items() if key not in gone
    )
    stocks = [one.stock for family in venue.holdings.values() for one in family.values()]
    assert purse.tied == sum(
        collateral(one for one in stocks if one.instrument.underlying == name) for name in ("AAPL", "BTC/USD")
    )
    assert purse.on_hold == sum(one.hold for one in tickets.values())
    assert all(one.hold == 0 for one in tickets.values() if one.state != "accepted")
    for family in venue.holdings.values():
        for key, one in family.items():
            legs = [(t.open * leg.ratio, leg) for t in tickets.values() for leg in t.working.terms.legs]
            assert one.buying == sum(open_ for open_, leg in legs if (leg.instrument.key, leg.side) == (key, "buy"))
            assert one.selling == sum(open_ for open_, leg in legs if (leg.instrument.key, leg.side) == (key, "sell"))
    for ticket in tickets.values():
        done = [one for ticket_id, one in venue.executions if ticket_id == ticket.id]
        assert ticket.working.filled <= (ticket.working.terms.quantity or 0)
        for index, leg in enumerate(ticket.working.terms.legs):
            assert sum(one.quantity for one in done if one.leg == index) == ticket.working.filled * leg.ratio


@settings(max_examples=30)
@given(st.lists(commands, max_size=30))
def test_the_same_script_ends_alike(script: list[Any]):
    one, other = play(script)[0], play(script)[0]
    assert (one.executions, one.purses, one.frames) == (other.executions, other.purses, other.frames)
