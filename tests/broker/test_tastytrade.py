"""tastytrade beyond the conformance cases: its recorded answers, errors, tokens, the streamer's faults, its history."""

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.broker.adapters.tastytrade import LIVE, PAPER
from services.broker.adapters.tastytrade.shapes import (
    ENDS,
    body_of,
    id_of,
    instrument_of,
    is_over,
    moment,
    report_of,
    symbol_of,
)
from services.broker.adapters.tastytrade.venue import TastytradeVenue
from services.broker.domain.instruments import Crypto, Equity, Option, instrument
from services.broker.domain.orders import Execution, Leg, Order, Terms
from services.broker.ports import VenueRefused
from shared.clock import utc_now
from shared.errors import Transient
from shared.work import Busy, OutcomeUnknown
from tests.broker.samples import AAPL, ACCOUNT, CALL, terms
from tests.broker.tastytrade_rig import opened
from tests.conftest import recorded
from tests.fakes.tastytrade import FakeTastytrade, Fault

PUT = instrument("AAPL261218P00190000")
REPORTED = datetime(2025, 5, 28, 16, 0, 1, 953000, tzinfo=UTC)


@pytest.fixture
async def fake() -> AsyncGenerator[FakeTastytrade]:
    async with FakeTastytrade() as running:
        yield running


@pytest.fixture
async def venue(fake: FakeTastytrade) -> AsyncGenerator[TastytradeVenue]:
    made = opened(fake)
    yield made
    await made.close()


def new(**changes: Any) -> Order:
    return Order(uuid4(), ACCOUNT, "tastytrade", terms(10, **changes))


def spread(*, limit: str) -> Terms:
    legs = (Leg(CALL, "buy", opens=True), Leg(PUT, "sell", 2, opens=True))
    return Terms(legs, "limit", "day", Decimal(3), limit=Decimal(limit), order_class="multi_leg")


def read(name: str) -> Any:
    return json.loads(recorded("data", "brokers", "tastytrade", name).read_text(), parse_float=Decimal)


# Recorded answers


def test_the_recorded_answer_to_a_submit_is_read():
    for name in ("Post_Submit_Order_Response.json", "converter__DeserializeSubmitOrderResponse__0.json"):
        report = report_of(read(name)["data"]["order"])
        assert (report.kind, report.venue_order_id, report.executions) == ("accepted", "270561", ())


def test_the_recorded_frame_of_a_filled_order_is_read():
    told = read("converter__DeserializeStreamFilledOrderMessage__0.json")["data"]
    report = report_of(told, streamed=True)
    fill_id = "2_TW::TEST_A1::20250528.135-TEST_FILL"
    assert report.kind == "filled"
    assert report.executions == (Execution(fill_id, Decimal(1), Decimal("1.0"), REPORTED),)
    assert is_over(told)


def test_recorded_open_orders_work_and_are_not_ours():
    for name in ("", "WithGoodTilDateTimeInForce"):
        page = read(f"converter__DeserializeRestOpenOrderResponse{name}__0.json")
        assert set(page["pagination"]) >= {"page-offset", "total-pages"}
        (told,) = page["data"]["items"]
        assert report_of(told).kind == "accepted"
        assert not is_over(told)
        assert id_of(told) is None


async def test_recorded_positions_and_balances_are_read(fake: FakeTastytrade, venue: TastytradeVenue):
    fake.fail("GET", "/positions$", Fault(200, body=recorded_text("Get_Positions.json")))
    fake.fail("GET", "/balances$", Fault(200, body=recorded_text("Get_Account_Balance.json")))
    held = await venue.positions()
    assert [(one.instrument, one.quantity) for one in held] == [(AAPL, Decimal(1)), (Equity("TQQQ"), Decimal(742))]
    balance = await venue.balance()
    assert (balance.cash, balance.buying_power, balance.currency) == (Decimal("0.0"), Decimal("0.0"), "USD")


def recorded_text(name: str) -> str:
    return recorded("data", "brokers", "tastytrade", name).read_text()


async def test_a_recorded_refusal_is_a_rejection_that_names_the_nested_error(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    body = json.dumps(read("Error_Responses.json")[2])
    fake.fail("POST", "/orders$", Fault(422, body=body))
    report = await venue.submit(new())
    assert report.kind == "rejected"
    assert report.reason == "gtc_market_orders_not_supported: GTC/GTD Market orders are not supported."


@pytest.mark.parametrize(("index", "code"), [(0, "not_permitted"), (1, "invalid_credentials")])
async def test_recorded_errors_of_credentials_refuse_the_account(
    fake: FakeTastytrade, venue: TastytradeVenue, index: int, code: str
):
    fault = Fault(403, body=json.dumps(read("Error_Responses.json")[index]))
    fake.fail("POST", "/orders$", fault)
    with pytest.raises(VenueRefused, match=code):
        await venue.submit(new())


def test_the_stand_in_tells_orders_in_the_recorded_shape():
    told = read("converter__DeserializeStreamFilledOrderMessage__0.json")["data"]
    fake = FakeTastytrade()
    desk = fake.desk
    order = desk.place(body_of(new(), ["Buy to Open"]))
    desk.fill(order, Decimal(10), Decimal(9))
    shown = desk.json(order)
    extra = {"ext-client-order-id", "ext-exchange-order-number", "ext-global-order-number"}
    assert told.keys() - extra <= shown.keys()
    assert told["legs"][0].keys() == shown["legs"][0].keys()
    assert told["legs"][0]["fills"][0].keys() == shown["legs"][0]["fills"][0].keys()


def test_an_option_is_written_with_its_recorded_padding():
    leg = read("converter__SerializeLegAttributes__0.json")
    of = instrument_of(leg)
    assert isinstance(of, Option)
    assert (of.key, symbol_of(of), len(symbol_of(of))) == ("AAPL230818C00197500", leg["symbol"], 21)


def test_every_status_of_the_reference_is_known():
    reference = json.loads(recorded("reference", "api_shapes.json").read_text())["tastytrade"]
    works = {"Received", "Routed", "In Flight", "Live", "Contingent", "Cancel Requested", "Replace Requested"}
    assert set(reference["status"]) == works | ENDS.keys()
    body = body_of(new(time_in_force="ioc"), ["Buy to Open"])
    assert body.keys() <= reference["order"]["json"].keys()
    assert body["time-in-force"] in reference["tif"]
    assert (LIVE.api, PAPER.api) == (reference["base"]["prod"], reference["base"]["sandbox"])


# What is sent


@pytest.mark.parametrize(("limit", "price", "effect"), [("1.50", "1.50", "Debit"), ("-0.35", "0.35", "Credit")])
def test_the_sign_of_a_net_price_is_a_word(limit: str, price: str, effect: str):
    body = body_of(replace(new(), terms=spread(limit=limit)), ["Buy to Open", "Sell to Open"])
    assert (body["price"], body["price-effect"]) == (price, effect)
    assert [(leg["symbol"], leg["quantity"]) for leg in body["legs"]] == [
        ("AAPL  261218C00200000", 3),
        ("AAPL  261218P00190000", 6),
    ]


@pytest.mark.parametrize(("side", "effect"), [("buy", "Debit"), ("sell", "Credit")])
def test_the_price_of_one_leg_is_paid_or_received_by_its_side(side: Any, effect: str):
    body = body_of(new(side=side), ["Buy to Open"])
    assert (body["price"], body["price-effect"]) == ("10", effect)


def test_an_order_that_closes_is_never_turned_into_one_that_opens():
    closes = body_of(new(legs=(Leg(AAPL, "sell", opens=False),)), ["Sell to Close"])
    assert closes["advanced-instructions"] == {"strict-position-effect-validation": True}
    assert "advanced-instructions" not in body_of(new(), ["Buy to Open"])


async def test_where_the_order_leaves_it_open_a_leg_closes_what_is_held_the_other_way(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    sold = new(side="sell")
    await venue.submit(sold)
    fake.desk.fill(fake.desk.under(str(sold.id)), Decimal(10), Decimal(10))
    await venue.submit(new(side="buy"))
    await venue.submit(new(side="sell"))
    actions = [one.body["legs"][0]["action"] for one in fake.asked("POST", "/orders$")]
    assert actions == ["Sell to Open", "Buy to Close", "Sell to Open"]


@pytest.mark.parametrize(("ours", "theirs"), [("BRK.B", "BRK/B"), ("_SPX", "SPX"), ("AAPL", "AAPL")])
def test_symbols_are_translated(ours: str, theirs: str):
    assert symbol_of(Equity(ours)) == theirs
    if ours != "_SPX":
        assert instrument_of({"symbol": theirs, "instrument-type": "Equity"}) == Equity(ours)


def test_what_an_option_lies_under_is_told_where_it_is_a_symbol():
    option = {"symbol": "BRKB  261218C00400000", "instrument-type": "Equity Option"}
    found = [instrument_of({**option, "underlying-symbol": one}) for one in ("BRK/B", "not one", None)]
    assert [isinstance(one, Option) and one.underlying for one in found] == ["BRK.B", "BRK.B", "BRK.B"]
    coin = {"symbol": "BTC/USD", "instrument-type": "Cryptocurrency", "underlying-symbol": "BTC/USD"}
    assert instrument_of(coin) == Crypto("BTC", "USD")


def test_what_we_do_not_know_is_no_instrument():
    assert instrument_of({"symbol": "/ESU9", "instrument-type": "Future"}) is None
    assert instrument_of({"symbol": "nonsense!", "instrument-type": "Equity"}) is None


def test_times_come_as_text_and_in_milliseconds():
    assert moment("2025-05-28T16:00:01.953+00:00") == moment(1748448001953) == REPORTED


async def test_options_have_the_steps_of_their_underlying(venue: TastytradeVenue):
    rules = await venue.rules([AAPL, CALL, Equity("BRK.B"), instrument("ZZZZ261218C00200000")])
    assert set(rules) == {"AAPL", CALL.key, "BRK.B"}
    assert [rules["AAPL"].tick(Decimal(one)) for one in ("0.5", "1", "100")] == [
        Decimal("0.0001"),
        Decimal("0.01"),
        Decimal("0.01"),
    ]
    assert [rules[CALL.key].tick(Decimal(one)) for one in ("2.99", "3")] == [Decimal("0.01"), Decimal("0.05")]


# Errors


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(500), OutcomeUnknown),
        (Fault(502), OutcomeUnknown),
        (Fault(504), OutcomeUnknown),
        (Fault(0), OutcomeUnknown),
        (Fault(200, body="<html>"), OutcomeUnknown),
        (Fault(200, body='{"data": {}}'), OutcomeUnknown),
        (Fault(302), OutcomeUnknown),
        (Fault(403), VenueRefused),
        (Fault(404), VenueRefused),
        (Fault(429), Busy),
    ],
)
async def test_what_a_submit_may_end_in(
    fake: FakeTastytrade, venue: TastytradeVenue, fault: Fault, expected: type[Exception]
):
    fake.fail("POST", "/orders$", fault)
    with pytest.raises(expected):
        await venue.submit(new())
    assert fake.desk.placed == []
    assert len(fake.asked("POST", "/orders$")) == 0


@pytest.mark.parametrize("status", [400, 409, 422])
async def test_a_refusal_without_words_is_a_rejection_all_the_same(
    fake: FakeTastytrade, venue: TastytradeVenue, status: int
):
    fake.fail("POST", "/orders$", Fault(status, body="no JSON"))
    report = await venue.submit(new())
    assert (report.kind, report.reason) == ("rejected", f"status {status}")


@pytest.mark.parametrize("fault", [Fault(500), Fault(0), Fault(200, body="[]"), Fault(200, body='{"data": {}}')])
@pytest.mark.parametrize("question", ["positions", "balance", "look_up", "changes"])
async def test_a_question_without_an_answer_is_transient(
    fake: FakeTastytrade, venue: TastytradeVenue, fault: Fault, question: str
):
    fake.fail("GET", "/accounts/", fault)
    asked = {
        "positions": venue.positions,
        "balance": venue.balance,
        "look_up": lambda: venue.look_up(new()),
        "changes": lambda: venue.changes(utc_now()),
    }
    with pytest.raises(Transient):
        await asked[question]()


async def test_a_venue_that_is_not_there_is_transient_even_for_a_write():
    async with FakeTastytrade() as fake:
        hosts, venue = fake.hosts, opened(fake)
        await venue.balance()
    with pytest.raises(Transient):
        await venue.submit(new(legs=(Leg(AAPL, "buy", opens=True),)))
    with pytest.raises(Transient):
        async with venue.stream():
            pass
    assert hosts.api.startswith("http://127.0.0.1")
    await venue.close()


async def test_a_rate_limit_says_how_long_to_wait_and_otherwise_some_seconds(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    named = [Fault(429, headers=(("retry-after", seconds),)) for seconds in ("17", "9" * 400)]
    fake.fail("GET", "/balances$", *named, Fault(429))
    waits: list[float | None] = []
    for _ in range(3):
        with pytest.raises(Busy) as told:
            await venue.balance()
        waits.append(told.value.retry_after_s)
    assert waits == [17, 3600, 5]


async def test_a_cancel_that_is_refused_tells_how_the_order_ended_or_why_not(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    order = new()
    await venue.submit(order)
    fake.fail("DELETE", "/orders/", Fault(422, body='{"error": {"code": "cannot_cancel", "message": "in flight"}}'))
    report = await venue.cancel(order)
    assert report is not None
    assert (report.kind, report.reason) == ("cancel_rejected", "cannot_cancel: in flight")
    unknown = await venue.cancel(new())
    assert unknown is not None
    assert unknown.kind == "cancel_rejected"


async def test_a_replacement_is_for_what_is_left(fake: FakeTastytrade, venue: TastytradeVenue):
    order = new()
    await venue.submit(order)
    placed = fake.desk.under(str(order.id))
    fake.desk.fill(placed, Decimal(4), Decimal(10))
    by = new(limit=Decimal(9))
    report = await venue.replace(order, by)
    assert report is not None
    assert report.kind == "replace_rejected"
    assert "6 is left" in (report.reason or "")
    assert [one.quantity for one in report.executions] == [4]
    assert fake.asked("PUT", "/orders/") == []
    rest = replace(by, terms=replace(by.terms, quantity=Decimal(6)))
    assert await venue.replace(order, rest) is None
    assert (await venue.look_up(order)).kind == "replaced"
    told = await venue.look_up(rest)
    assert (told.kind, told.venue_order_id) == ("accepted", str(placed.replacing))
    assert fake.desk.under(str(rest.id)).legs[0].left == 6
    changes = {one.order_id: one.report for one in (await venue.changes(utc_now())).orders}
    assert changes[order.id].replaced_by == rest.id


async def test_other_legs_are_another_order(fake: FakeTastytrade, venue: TastytradeVenue):
    order = new()
    await venue.submit(order)
    report = await venue.replace(order, new(legs=(Leg(Equity("MSFT"), "buy"),)))
    assert report is not None
    assert report.kind == "replace_rejected"
    assert fake.asked("PUT", "/orders/") == []


# Looking up


async def test_an_order_is_found_on_a_later_page(fake: FakeTastytrade, venue: TastytradeVenue):
    order = new()
    await venue.submit(order)
    fake.desk.end(fake.desk.under(str(order.id)), "Cancelled")
    asked = fake.asked("POST", "/orders$")[0].body
    for _ in range(240):
        fake.desk.place({**asked, "external-identifier": str(uuid4())})
    assert (await venue.look_up(order)).kind == "canceled"
    offsets = [one.query.get("page-offset", "0") for one in fake.asked("GET", "/orders$")]
    assert offsets == ["0", "1", "2"]


async def test_an_order_that_was_submitted_twice_is_two_orders_and_told_as_one(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    order = new()
    await venue.submit(order)
    first = fake.desk.under(str(order.id))
    fake.desk.fill(first, Decimal(1), Decimal(10))
    await venue.submit(order)
    second = fake.desk.under(str(order.id))
    fake.desk.fill(second, Decimal(10), Decimal(10))
    assert first is not second
    report = await venue.look_up(order)
    assert (report.kind, report.venue_order_id) == ("accepted", str(first.id))
    assert sorted(one.quantity for one in report.executions) == [1, 10]


async def test_a_time_ordered_id_bounds_the_search(fake: FakeTastytrade, venue: TastytradeVenue):
    made = datetime(2026, 11, 20, 15, tzinfo=UTC)
    order_id = UUID(int=(int(made.timestamp() * 1000) << 80) | (7 << 76) | (2 << 62) | 5)
    assert order_id.version == 7
    for one in (replace(new(), id=order_id), new()):
        assert (await venue.look_up(one)).kind == "not_found"
    windows = [one.query.get("start-date") for one in fake.asked("GET", "/orders$")]
    assert windows[1] is None
    assert windows[0] is not None
    assert windows[0] <= "2026-11-19"
