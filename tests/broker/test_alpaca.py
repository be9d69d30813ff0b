"""Alpaca's REST API: what is sent, what the recorded answers say, how each refusal is told."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.broker.adapters.alpaca import LIVE, PAPER, Alpaca
from services.broker.adapters.alpaca.activities import executions_of
from services.broker.adapters.alpaca.reading import body_of, change_of, held_of
from services.broker.adapters.alpaca.wire import wait_s
from services.broker.domain.instruments import Crypto, Equity, instrument
from services.broker.domain.orders import Exits, Leg, Order, Terms
from services.broker.ports import Account, Held, VenueRefused
from shared.errors import Transient
from shared.work import Busy, OutcomeUnknown
from tests.broker.alpaca_rig import ACCOUNT, SECRETS, AlpacaRig, AlpacaRigs
from tests.broker.samples import terms
from tests.conftest import recorded
from tests.fakes.alpaca import KEY_ID, SECRET_KEY

BTC = Crypto("BTC", "USD")
LOW, HIGH = instrument("AAPL261218C00200000"), instrument("AAPL261218C00210000")
SPREAD = (Leg(LOW, "buy", 3, opens=True), Leg(HIGH, "sell", opens=True))


@pytest.fixture
async def rig() -> AsyncGenerator[AlpacaRig]:
    async with AlpacaRigs().open() as opened:
        yield opened


def new(asked: Terms | None = None, **changes: Any) -> Order:
    return Order(uuid4(), ACCOUNT.id, "alpaca", asked or terms(10, **changes))


def told(name: str) -> Any:
    return json.loads(recorded("data", "brokers", "alpaca", f"test_{name}.json").read_text(), parse_float=Decimal)


def answer(rig: AlpacaRig, status: int, body: Any, **headers: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body, default=str).encode()
    rig.alpaca.answers.append((status, content, headers))


# What is sent


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (terms(10), {"symbol": "AAPL", "side": "buy", "type": "limit", "qty": "10", "limit_price": "10"}),
        (terms(Decimal("1E+3"), type="market", limit=None), {"type": "market", "qty": "1000"}),
        (terms(None, notional=Decimal("50.5"), type="market", limit=None), {"notional": "50.5"}),
        (terms(Decimal("0.000000001")), {"qty": "0.000000001"}),
        (terms(1, type="stop", limit=None, stop=Decimal(9)), {"type": "stop", "stop_price": "9"}),
        (terms(1, type="stop_limit", stop=Decimal(9)), {"stop_price": "9", "limit_price": "10"}),
        (terms(1, type="trailing_stop", limit=None, trail_amount=Decimal(2)), {"trail_price": "2"}),
        (terms(1, type="trailing_stop", limit=None, trail_percent=Decimal("1.5")), {"trail_percent": "1.5"}),
        (terms(1, extended_hours=True), {"extended_hours": True}),
        (terms(1, legs=(Leg(Equity("SPY"), "sell", opens=True),)), {"position_intent": "sell_to_open"}),
        (terms(1, legs=(Leg(LOW, "sell", opens=False),)), {"symbol": LOW.key, "position_intent": "sell_to_close"}),
        (terms(1, legs=(Leg(BTC, "buy", opens=True),), time_in_force="gtc"), {"symbol": "BTC/USD"}),
    ],
)
async def test_an_order_goes_out_as_alpaca_reads_it(rig: AlpacaRig, asked: Terms, sent: dict[str, Any]):
    order = new(asked)
    body = body_of(order)
    assert body.items() >= {"client_order_id": f"openbell-{order.id}", "order_class": "simple", **sent}.items()
    assert ("position_intent" in body) == ("position_intent" in sent)
    assert (await rig.venue.submit(order)).kind == "accepted"  # and the stand-in takes nothing that it does not know


async def test_several_legs_go_out_as_one_order(rig: AlpacaRig):
    order = new(terms(2, legs=SPREAD, limit=Decimal("-1.5"), order_class="multi_leg"))
    body = body_of(order)
    assert body["legs"] == [
        {"symbol": LOW.key, "ratio_qty": "3", "side": "buy", "position_intent": "buy_to_open"},
        {"symbol": HIGH.key, "ratio_qty": "1", "side": "sell", "position_intent": "sell_to_open"},
    ]
    assert (body["order_class"], body["limit_price"]) == ("mleg", "-1.5")
    assert not body.keys() & {"symbol", "side"}
    report = await rig.venue.submit(order)
    assert (report.kind, report.venue_order_id) == ("accepted", rig.order(order.id)["id"])


async def test_a_bracket_is_rejected_before_anything_is_sent(rig: AlpacaRig):
    order = new(terms(1, order_class="bracket", exits=Exits(Decimal(12), Decimal(8))))
    assert (await rig.venue.submit(order)).kind == "rejected"
    assert rig.alpaca.requests == []


def test_a_replacement_says_what_changes():
    old, by = new(terms(10)), new(terms(8, limit=Decimal("9.5"), time_in_force="gtc"))
    sent = {"client_order_id": f"openbell-{by.id}", "qty": "8", "limit_price": "9.5", "time_in_force": "gtc"}
    assert change_of(old, by) == sent
    trailing = terms(10, type="trailing_stop", limit=None, trail_percent=Decimal(1))
    changed = change_of(new(trailing), new(terms(10, type="trailing_stop", limit=None, trail_percent=Decimal(2))))
    assert changed is not None
    assert changed["trail"] == "2"


@pytest.mark.parametrize(
    "by",
    [
        terms(10, side="sell"),
        terms(10, type="market", limit=None),
        terms(None, notional=Decimal(5)),
        terms(10, extended_hours=True),
        terms(10, legs=(Leg(Equity("SPY"), "buy"),)),
    ],
)
async def test_what_alpaca_does_not_replace_is_refused_before_it_is_sent(rig: AlpacaRig, by: Terms):
    order = new()
    await rig.venue.submit(order)
    report = await rig.venue.replace(order, new(by))
    assert report is not None
    assert report.kind == "replace_rejected"
    assert [method for method, _, _ in rig.alpaca.requests] == ["POST"]


# Where it goes


def base_of(adapter: Alpaca, mode: Any) -> Any:
    venue: Any = adapter.open(Account(UUID(int=7), UUID(int=1), "alpaca", mode), SECRETS)
    return venue._wire._base, venue._line._url


def test_only_live_exactly_goes_to_the_live_address():
    assert base_of(Alpaca(), "live") == (LIVE, "wss://api.alpaca.markets/stream")
    for mode in ("paper", "LIVE", "live ", "", None, True):
        assert base_of(Alpaca(), mode) == (PAPER, "wss://paper-api.alpaca.markets/stream")


@pytest.mark.parametrize(
    "secrets", [{}, {"key_id": "a"}, {"key_id": "a", "secret_key": ""}, {"key_id": "a\r\nx: y", "secret_key": "b"}]
)
def test_credentials_that_can_be_none_are_refused(secrets: dict[str, str]):
    with pytest.raises(VenueRefused):
        Alpaca().open(ACCOUNT, secrets)


# What recorded answers say


async def test_the_recorded_order_is_read(rig: AlpacaRig):
    answer(rig, 200, told("order_routes__test_get_order_by_client_id__1"))
    report = await rig.venue.look_up(new())
    assert (report.kind, report.looked_up, report.cumulative, report.executions) == ("accepted", True, (), ())
    assert report.venue_order_id == "61e69015-8549-4bfd-b9c3-01e75843f47d"


async def test_the_recorded_list_of_orders_is_read_and_is_somebody_elses(rig: AlpacaRig):
    answer(rig, 200, told("order_routes__test_get_orders__1"))
    changes = await rig.venue.changes(datetime(2019, 8, 1, tzinfo=UTC))
    assert (changes.orders, changes.facts) == ([], ())


async def test_the_recorded_account_is_read(rig: AlpacaRig):
    answer(rig, 200, told("account_routes__test_get_account__1"))
    balance = await rig.venue.balance()
    assert (balance.cash, balance.buying_power, balance.currency) == (Decimal("-23140.2"), Decimal("262113.632"), "USD")


async def test_the_recorded_positions_are_read(rig: AlpacaRig):
    answer(rig, 200, told("position_routes__test_get_all_positions__1"))
    assert await rig.venue.positions() == [Held(Equity("AAPL"), Decimal(5))]


@pytest.mark.parametrize(
    ("symbol", "kind", "key"),
    [
        ("BTCUSD", "crypto", "BTC/USD"),
        ("USDTUSD", "crypto", "USDT/USD"),
        ("ETHBTC", "crypto", "ETH/BTC"),
        ("DOGEUSDT", "crypto", "DOGE/USDT"),
        ("BTC/USDC", "crypto", "BTC/USDC"),
        (LOW.key, "us_option", LOW.key),
    ],
)
def test_a_short_position_is_below_zero_and_a_pair_has_its_slash(symbol: str, kind: str, key: str):
    held = held_of({"symbol": symbol, "asset_class": kind, "qty": "-1.5", "side": "short"})
    assert (held.instrument.key, held.quantity) == (key, Decimal("-1.5"))


async def test_the_recorded_instruments_are_read(rig: AlpacaRig):
    option = instrument("AAPL231103C00170000")
    answer(rig, 200, told("asset_routes__test_get_asset__1"))
    answer(rig, 200, told("option_routes__test_get_option_contract__1"))
    rules = await rig.venue.rules([Equity("AAPL"), option])
    assert rules["AAPL"].quantity_step == Decimal("1e-9")
    assert (rules["AAPL"].tick(Decimal(300)), rules["AAPL"].tick(Decimal("0.5"))) == (
        Decimal("0.01"),
        Decimal("0.0001"),
    )
    assert (rules[option.key].quantity_step, rules[option.key].tradable) == (1, True)


async def test_each_kind_of_instrument_has_its_own_steps(rig: AlpacaRig):
    rig.alpaca.books.assets["SPY"] |= {"fractionable": False, "tradable": False}
    rules = await rig.venue.rules([Equity("SPY"), BTC, LOW, Equity("ZZZZZ")])
    assert set(rules) == {"SPY", "BTC/USD", LOW.key}
    assert (rules["SPY"].quantity_step, rules["SPY"].tradable) == (1, False)
    assert (rules["BTC/USD"].least_quantity, rules["BTC/USD"].tick(Decimal(9))) == (Decimal("0.0001"), Decimal("0.01"))
    assert (rules[LOW.key].tick(Decimal(2)), rules[LOW.key].tick(Decimal(3))) == (Decimal("0.01"), Decimal("0.05"))


def test_recorded_fills_are_read_exactly():
    fills = list(told("account_activities_routes__setup_reqmock_for_paginated_account_activities_response__1"))
    found = executions_of([one for one in fills if "order_id" in one], {"b677e464-c2d0-4fdd-a4b1-8830b386aa50": 0})
    assert [(one.id, one.quantity, one.price) for one in found] == [
        ("092cd749-b783-49cb-a36e-4d8666be201f", Decimal(9), Decimal("2630.95"))
    ]
    assert found[0].at == datetime(2022, 3, 4, 14, 53, 18, 500245, UTC)


async def test_the_stand_in_speaks_the_recorded_shapes(rig: AlpacaRig):
    frames = json.loads(recorded("reference", "alpaca_trade_updates.json").read_text())["frames"]
    order = new()
    await rig.venue.submit(order)
    assert set(rig.order(order.id)) == set(frames[-1]["data"]["order"])
    await rig.fill(order.id, Decimal(1), Decimal(10))
    frame = rig.alpaca.last_fill
    assert frame is not None
    assert frames[-1]["data"].keys() - frame["data"].keys() == {"swap_rate", "settle_date"}
    assert frame["data"].keys() <= frames[-1]["data"].keys()
    fill = told("account_activities_routes__test_get_activities_for_account_max_items_and_single_request_date__1")[0]
    assert set(rig.alpaca.books.activities[0]) == set(fill)
    assert rig.alpaca.books.account().keys() <= told("account_routes__test_get_account__1").keys()


# How each refusal is told

UNIQUE = {"code": 40010001, "message": "client_order_id must be unique"}
POOR = {"code": 40310000, "message": "insufficient buying power"}


@pytest.mark.parametrize(("status", "body"), [(403, POOR), (422, POOR), (400, POOR), (404, POOR), (422, b"")])
async def test_an_order_that_alpaca_does_not_want_is_rejected_with_its_reason(rig: AlpacaRig, status: int, body: Any):
    answer(rig, status, body)
    report = await rig.venue.submit(new())
    assert (report.kind, report.reason) == ("rejected", body["message"] if body else "no reason given")


@pytest.mark.parametrize(
    ("status", "body"),
    [(422, UNIQUE), (500, b""), (502, b"<html>"), (504, {}), (408, {}), (301, {}), (200, b"{"), (200, {}), (200, [])],
)
async def test_a_submit_that_may_have_been_done_is_of_unknown_outcome(rig: AlpacaRig, status: int, body: Any):
    answer(rig, status, body)
    with pytest.raises(OutcomeUnknown):
        await rig.venue.submit(new())


@pytest.mark.parametrize("status", [500, 503, 408])
async def test_a_cancel_or_a_replacement_that_may_have_been_done_is_of_unknown_outcome(rig: AlpacaRig, status: int):
    order = new()
    await rig.venue.submit(order)
    answer(rig, 200, rig.order(order.id))
    answer(rig, status, b"")
    with pytest.raises(OutcomeUnknown):
        await rig.venue.cancel(order)
    answer(rig, 200, rig.order(order.id))
    answer(rig, status, b"")
    with pytest.raises(OutcomeUnknown):
        await rig.venue.replace(order, new())


@pytest.mark.parametrize(("status", "body"), [(401, {"code": 40110000, "message": "no"}), (403, {"message": "no"})])
async def test_keys_that_alpaca_does_not_take_are_told_apart_from_orders(rig: AlpacaRig, status: int, body: Any):
    for call in (rig.venue.submit(new()), rig.venue.balance(), rig.venue.look_up(new())):
        answer(rig, status, body)
        with pytest.raises(VenueRefused, match="keys"):
            await call


@pytest.mark.parametrize(("status", "body"), [(500, b""), (503, {}), (200, b"{"), (200, {"cash": "much"}), (302, b"")])
async def test_a_read_that_fails_is_tried_again(rig: AlpacaRig, status: int, body: Any):
    answer(rig, status, body)
    with pytest.raises(Transient):
        await rig.venue.balance()


async def test_a_rate_limit_says_how_long_to_wait(rig: AlpacaRig):
    answer(rig, 429, {}, **{"retry-after": "7"})
    with pytest.raises(Busy) as caught:
        await rig.venue.submit(new())
    assert caught.value.retry_after_s == 7
    assert rig.submits() == []


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "12.5"}, 12.5),
        ({"retry-after": "soon", "x-ratelimit-reset": "1800000010"}, 10),
        ({"x-ratelimit-reset": "1800000100", "date": "Fri, 15 Jan 2027 08:01:20 GMT"}, 20),
        ({"x-ratelimit-reset": "1700000000"}, 1),
        ({"x-ratelimit-reset": "1900000000"}, 60),
        ({"x-ratelimit-reset": "nan"}, 1),
        ({}, 60),
    ],
)
def test_the_wait_follows_from_the_headers(headers: dict[str, str], seconds: float):
    assert wait_s(headers, datetime.fromtimestamp(1_800_000_000, UTC)) == seconds


async def test_no_connection_is_transient_for_nothing_was_sent():
    venue = Alpaca(paper="http://127.0.0.1:1").open(ACCOUNT, SECRETS)
    for call in (venue.submit(new()), venue.balance(), venue.stream().__aenter__()):
        with pytest.raises(Transient):
            await call
    await venue.close()


async def test_no_answer_in_time_is_of_unknown_outcome_for_a_write_and_transient_for_a_read():
    waiting: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: waiting.append(writer), "127.0.0.1", 0)
    venue = Alpaca(paper=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_s=0.2).open(ACCOUNT, SECRETS)
    with pytest.raises(OutcomeUnknown):
        await venue.submit(new())
    with pytest.raises(Transient):
        await venue.balance()
    await venue.close()
    for writer in waiting:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    server.close()
    await server.wait_closed()


async def test_a_cancel_of_what_alpaca_does_not_know_is_rejected(rig: AlpacaRig):
    report = await rig.venue.cancel(new())
    assert report is not None
    assert report.kind == "cancel_rejected"
    report = await rig.venue.replace(new(), new())
    assert report is not None
    assert report.kind == "replace_rejected"


async def test_a_cancel_that_is_under_way_already_is_no_refusal(rig: AlpacaRig):
    order = new()
    await rig.venue.submit(order)
    rig.hold_cancels()
    assert await rig.venue.cancel(order) is None
    assert await rig.venue.cancel(order) is None


async def test_an_order_that_somebody_else_replaced_says_so(rig: AlpacaRig):
    order = new()
    await rig.venue.submit(order)
    rig.alpaca.books.replace(rig.order(order.id)["id"], {"client_order_id": str(uuid4()), "qty": "5"}, hold=False)
    report = await rig.venue.look_up(order)
    assert (report.kind, report.replaced_by) == ("replaced", None)


# Secrets


async def test_no_log_and_no_error_tells_a_secret(rig: AlpacaRig, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    for library in ("httpx", "httpcore"):  # a test that sets up logs makes them silent
        caplog.set_level(logging.DEBUG, library)
    errors: list[BaseException] = []
    order = new()
    async with rig.venue.stream() as updates:
        await rig.venue.submit(order)
        assert (await anext(updates)).order_id == order.id
    echo = {"code": 1, "message": f"bad header {SECRET_KEY} of {KEY_ID}"}
    for status, body in [(422, echo), (401, echo), (429, echo), (500, echo), (200, echo)]:
        for call in (rig.venue.balance, lambda: rig.venue.submit(new())):
            answer(rig, status, body)
            try:
                report = await call()
            except (Transient, VenueRefused, OutcomeUnknown) as error:
                errors.append(error)
            else:
                assert "***" in str(report)
                assert KEY_ID not in repr(report)
    assert len(errors) == 9
    ours = [one.getMessage() for one in caplog.records if not one.name.startswith("uvicorn")]  # the stand-in's own
    written = "".join(ours) + repr(rig.venue) + "".join(f"{one!r} {one} {one.__cause__!r}" for one in errors)
    assert "httpcore" in caplog.text  # debug was on
    for key in (KEY_ID, SECRET_KEY):
        assert not [key[at : at + 8] for at in range(len(key) - 7) if key[at : at + 8] in written]
