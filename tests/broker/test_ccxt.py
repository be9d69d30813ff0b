"""ccxt's venue over a stand-in for Binance: what it does beside the conformance cases."""

import json
import logging
import subprocess
import sys
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Context, Decimal, Underflow, getcontext, localcontext
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.broker.adapters import ccxt_exchanges as exchanges
from services.broker.adapters.ccxt_venue import Ccxt
from services.broker.adapters.ccxt_wire import Form, client, read_id, report, rules_of, written
from services.broker.domain.instruments import Crypto
from services.broker.domain.orders import Fill, Leg, Order, Terms
from services.broker.ports import VenueRefused
from shared.errors import Transient
from shared.work import Busy, OutcomeUnknown
from tests.broker.ccxt_rig import ACCOUNT, NOWHERE, SECRETS, CcxtRig, CcxtRigs, adapter_over
from tests.fakes.exchange import KEY, SECRET, Exchange
from tests.fakes.serving import serving

BTC: Final = Crypto("BTC", "USD")
ROOT: Final = Path(__file__).parents[2]
PLACES, DIGITS, TICKS = 2, 3, 4  # ccxt's precision modes


def order(quantity: Any = 10, **changes: Any) -> Order:
    given: dict[str, Any] = {
        "legs": (Leg(BTC, "buy"),),
        "type": "limit",
        "time_in_force": "gtc",
        "quantity": None if quantity is None else Decimal(quantity),
        "limit": Decimal(99),
    }
    return Order(uuid4(), ACCOUNT.id, "ccxt-binance", Terms(**{**given, **changes}), submits=1)


@pytest.fixture
async def rig():
    async with CcxtRigs().open() as opened:
        yield opened


# Errors

ANSWERS: Final[list[tuple[str, int, Any, type[Exception] | str, type[Exception]]]] = [
    ("rate limit", 429, {"code": -1003, "msg": "Too many requests."}, Busy, Busy),
    ("ban", 418, {"code": -1003, "msg": "Way too many requests."}, Busy, Busy),
    ("bad key", 401, {"code": -2014, "msg": "API-key format invalid."}, VenueRefused, VenueRefused),
    ("bad signature", 400, {"code": -1022, "msg": "Signature not valid."}, VenueRefused, VenueRefused),
    ("unavailable", 503, "<html>no</html>", OutcomeUnknown, Transient),
    ("gateway", 504, "<html>no</html>", OutcomeUnknown, Transient),
    ("timeout inside", 400, {"code": -1007, "msg": "Send status unknown."}, OutcomeUnknown, Transient),
    ("bus", 400, {"code": -1006, "msg": "Execution status unknown."}, OutcomeUnknown, Transient),
    ("unknown code", 400, {"code": -9999, "msg": "?"}, OutcomeUnknown, Transient),
    ("no JSON", 200, "<html>hello</html>", OutcomeUnknown, Transient),
    ("duplicate", 400, {"code": -2010, "msg": "Duplicate order sent."}, OutcomeUnknown, Transient),
    ("clock", 400, {"code": -1021, "msg": "Timestamp."}, Transient, Transient),
    ("no money", 400, {"code": -2010, "msg": "Account has insufficient balance for requested action."}, "", Transient),
    ("order", 400, {"code": -2010, "msg": "Filter failure: MAX_NUM_ORDERS"}, "", Transient),
    ("filter", 400, {"code": -1013, "msg": "Filter failure: NOTIONAL"}, "", Transient),
    ("symbol", 400, {"code": -1121, "msg": "Invalid symbol."}, "", Transient),
]


@pytest.mark.parametrize(
    ("status", "answer", "write", "read"), [one[1:] for one in ANSWERS], ids=[a[0] for a in ANSWERS]
)
async def test_each_error_is_told_in_the_ports_words(
    rig: CcxtRig, status: int, answer: Any, write: Any, read: type[Exception]
):
    await rig.venue.balance()
    rig.exchange.errors = [(status, answer)]
    if isinstance(write, str):
        told = await rig.venue.submit(order())
        assert told.kind == "rejected"
        assert answer["msg"] in (told.reason or "")
    else:
        with pytest.raises(write) as caught:
            await rig.venue.submit(order())
        assert type(caught.value) is write
    assert rig.submits() == []
    rig.exchange.errors = [(status, answer)] * 2
    with pytest.raises(read) as told_reading:
        await rig.venue.balance()
    assert type(told_reading.value) is read


async def test_a_rate_limit_tells_how_long_to_wait(rig: CcxtRig):
    await rig.venue.balance()
    rig.limit_next()
    with pytest.raises(Busy) as caught:
        await rig.venue.balance()
    assert caught.value.retry_after_s == 7


async def test_an_exchange_that_is_not_there_leaves_a_write_in_doubt_and_a_question_to_be_asked_again():
    with serving(Exchange(), "exchange") as address:
        rig = CcxtRig(Exchange(), adapter_over(address))
        await rig.venue.balance()
    with pytest.raises(OutcomeUnknown):
        await rig.venue.submit(order())
    with pytest.raises(Transient):
        await rig.venue.balance()
    await rig.venue.close()


async def test_a_refused_repetition_says_nothing_of_the_first_try(rig: CcxtRig):
    first = order()
    await rig.venue.submit(first)
    rig.refuse_next("Account has insufficient balance for requested action.")
    with pytest.raises(OutcomeUnknown):
        await rig.venue.submit(replace(first, submits=2))
    assert (await rig.venue.look_up(first)).kind == "accepted"


# Secrets


async def test_no_secret_is_in_an_error_a_reason_or_a_log(rig: CcxtRig, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    told = ""
    echo = f"{KEY} {SECRET} https://127.0.0.1/x?signature=0123"
    for answer in ({"code": -2010, "msg": echo}, {"code": -9999, "msg": echo}, {"code": -2015, "msg": echo}, echo):
        rig.exchange.errors = [(400, answer)]
        try:
            told += str(await rig.venue.submit(order()))
        except Exception:  # noqa: BLE001 - whatever it is, it must not have them
            told += traceback.format_exc()
    told += caplog.text + repr(rig.venue)
    assert "rejected" in told
    assert not [secret for secret in (KEY, SECRET, "signature=", "0123") if secret in told.replace(str(ROOT), "")]


# Numbers


async def test_numbers_of_an_answer_are_its_text_and_never_floats():
    exchange = client("binance", {})
    assert exchange.parse_json('{"a": 0.1234567890123456789, "b": [1e-8, 12345678901234567890]}') == {
        "a": "0.1234567890123456789",
        "b": ["1e-8", "12345678901234567890"],
    }
    assert exchange.safe_number({"a": "0.1234567890123456789"}, "a") == "0.1234567890123456789"


async def test_a_float_that_slips_through_is_refused_rather_than_told(rig: CcxtRig):
    raw = {"id": "1", "status": "open", "filled": 0.1, "amount": "1"}
    with pytest.raises(Transient):
        report(raw, (), {"base": "BTC", "quote": "USD"})


@pytest.mark.parametrize(
    ("quantity", "limit"), [("0.000015", "99"), ("0.000001", "99"), ("1", "99.001"), ("1", "0.001")]
)
async def test_what_ccxt_would_round_is_rejected_and_not_sent(rig: CcxtRig, quantity: str, limit: str):
    told = await rig.venue.submit(order(quantity, limit=Decimal(limit)))
    assert told.kind == "rejected"
    assert rig.submits() == []
    assert not [one for one in rig.exchange.requests if one.startswith("POST")]


async def test_small_and_large_numbers_arrive_as_they_are(rig: CcxtRig):
    await rig.venue.submit(order("0.00001", limit=Decimal("123456.78")))
    sent = rig.exchange.orders[0]
    assert (sent["quantity" if "quantity" in sent else "origQty"], sent["price"]) == ("0.00001", "123456.78")


async def test_the_rounding_of_everybody_else_stays_as_it_was(rig: CcxtRig):
    with localcontext(Context(rounding=ROUND_HALF_EVEN)):
        placed = order("0.00001", limit=Decimal("123456.78"))
        await rig.venue.submit(placed)
        await rig.venue.look_up(placed)
        assert getcontext().rounding == ROUND_HALF_EVEN
        assert not getcontext().traps[Underflow]


def test_steps_are_read_in_each_of_ccxts_ways():
    ticks = rules_of({"precision": {"price": "0.05", "amount": "0.001"}}, TICKS)
    assert ticks is not None
    assert (ticks.tick(Decimal(7)), ticks.quantity_step, ticks.least_quantity) == (
        Decimal("0.05"),
        Decimal("0.001"),
        Decimal("0.001"),
    )
    places = rules_of(
        {"precision": {"price": "2", "amount": "4"}, "limits": {"amount": {"min": "0.01"}}, "active": False}, PLACES
    )
    assert places is not None
    assert (places.tick(Decimal(7)), places.quantity_step, places.least_quantity, places.tradable) == (
        Decimal("0.01"),
        Decimal("0.0001"),
        Decimal("0.01"),
        False,
    )
    digits = rules_of({"precision": {"price": "5", "amount": "8"}}, DIGITS)
    assert digits is not None
    assert [digits.tick(Decimal(one)) for one in ("12345", "99999", "1.2345", "0.00012345")] == [
        Decimal(1),
        Decimal(1),
        Decimal("0.0001"),
        Decimal("1e-8"),
    ]
    assert rules_of({"precision": {"price": None, "amount": "1"}}, TICKS) is None


# Fills and fees


async def test_fees_are_told_in_what_is_traded_in_money_or_apart(rig: CcxtRig):
    begin = datetime.now(UTC)
    bought, sold = order(4), order(2, legs=(Leg(BTC, "sell"),))
    await rig.venue.submit(bought)
    await rig.fill(bought.id, Decimal(1), Decimal("98.50"))
    await rig.fill(bought.id, Decimal(3), Decimal("98.25"))
    (one, other) = (await rig.venue.look_up(bought)).executions
    assert (one.quantity, one.price, one.fee, one.fee_quantity) == (1, Decimal("98.50"), 0, Decimal("0.001"))
    assert (other.quantity, other.fee_quantity) == (3, Decimal("0.003"))
    await rig.venue.submit(sold)
    await rig.fill(sold.id, Decimal(1), Decimal(100))
    (one,) = (await rig.venue.look_up(sold)).executions
    assert (one.fee, one.fee_quantity) == (Decimal("0.1"), 0)

    rig.exchange.fee_coin = "BNB"
    await rig.fill(sold.id, Decimal(1), Decimal(100))
    told = (await rig.venue.look_up(sold)).executions[1]
    assert (told.fee, told.fee_quantity) == (0, 0)
    (fact,) = (await rig.venue.changes(begin)).facts
    assert isinstance(fact, Fill)
    assert (fact.instrument.key, fact.side, fact.quantity, fact.price) == ("BNB/USD", "sell", Decimal("0.1"), 0)


async def test_fills_of_orders_that_somebody_placed_elsewhere_are_facts(rig: CcxtRig):
    begin = datetime.now(UTC)
    await rig.venue.submit(order(1))
    rig.exchange.orders[0]["clientOrderId"] = "web_0815"
    rig.exchange.fill("web_0815", Decimal(1), Decimal(99))
    changes = await rig.venue.changes(begin)
    assert changes.orders == []
    (fact,) = changes.facts
    assert isinstance(fact, Fill)
    assert (fact.side, fact.quantity, fact.price, fact.fee_quantity) == ("buy", 1, 99, Decimal("0.001"))
    assert [fact] == (await rig.venue.changes(begin)).facts


async def test_all_pages_of_a_listing_are_read(rig: CcxtRig):
    rig.exchange.page = 12
    begin = datetime.now(UTC)
    orders = [order(1) for _ in range(40)]
    for number, one in enumerate(orders):
        await rig.venue.submit(one)
        await rig.fill(one.id, Decimal(1), Decimal(99))
        rig.exchange.orders[-1]["time"] += number
        rig.exchange.trades[-1]["time"] += number
    assert {one.order_id for one in (await rig.venue.changes(begin)).orders} == {one.id for one in orders}


async def test_after_a_restart_every_order_is_found_as_it_is(rig: CcxtRig):
    works, part, whole, canceled, lost = (order() for _ in range(5))
    for one in (works, part, whole, canceled):
        await rig.venue.submit(one)
    await rig.fill(part.id, Decimal(4), Decimal(99))
    await rig.fill(whole.id, Decimal(10), Decimal(99))
    await rig.venue.cancel(canceled)
    rig.lose_next("request")
    with pytest.raises(OutcomeUnknown):
        await rig.venue.submit(lost)
    await rig.reopen()
    told = [(await rig.venue.look_up(one)).kind for one in (works, part, whole, canceled, lost)]
    assert told == ["accepted", "accepted", "filled", "canceled", "not_found"]
    changes = await rig.venue.changes(datetime.now(UTC) - timedelta(minutes=5))
    assert {one.order_id for one in changes.orders} == {works.id, part.id, whole.id, canceled.id}


async def test_an_order_is_not_replaced(rig: CcxtRig):
    first = order()
    await rig.venue.submit(first)
    told = await rig.venue.replace(first, order(limit=Decimal(98)))
    assert told is not None
    assert told.kind == "replace_rejected"
    assert rig.submits() == [first.id]


# Paper and live


@pytest.mark.parametrize("exchange_id", ["kraken", "bitstamp", "coinbase", "binanceus"])
def test_paper_is_refused_where_the_exchange_has_no_sandbox(exchange_id: str):
    adapter = Ccxt(exchange_id)
    with pytest.raises(VenueRefused, match="sandbox"):
        adapter.open(ACCOUNT, dict.fromkeys(adapter.secrets, "x"))


@pytest.mark.parametrize("mode", ["paper", "Live", "LIVE", "", "live "])
async def test_anything_but_live_goes_to_the_sandbox(mode: Any):
    venue = adapter_over(NOWHERE).open(replace(ACCOUNT, mode=mode), SECRETS)
    used = set(exchanges.addresses(venue.exchange.urls["api"]))
    assert used
    assert all(one.startswith(f"{NOWHERE}/") for one in used)
    await venue.close()


async def test_live_goes_to_the_live_exchange():
    exchange = Exchange()
    with serving(exchange, "exchange") as address:
        venue = adapter_over(NOWHERE, live=address).open(replace(ACCOUNT, mode="live"), SECRETS)
        assert (await venue.balance()).cash == 100_000
        await venue.close()
    assert "GET /api/v3/account" in exchange.requests


@pytest.mark.parametrize("exchange_id", ["nowhere", "bitfinex", "krakenfutures", "__class__", "Exchange"])
def test_an_exchange_that_could_double_orders_or_is_none_is_refused(exchange_id: str):
    adapter = Ccxt(exchange_id)
    with pytest.raises(VenueRefused):
        adapter.open(replace(ACCOUNT, mode="live"), SECRETS)


@pytest.mark.parametrize("secrets", [{}, {"apiKey": "k"}, {**SECRETS, "password": "p"}, {**SECRETS, "secret": ""}])
def test_credentials_of_another_shape_are_refused(secrets: dict[str, str]):
    with pytest.raises(VenueRefused):
        adapter_over(NOWHERE).open(ACCOUNT, secrets)


# Ids and lists


@given(st.uuids(), st.sampled_from(["canonical", "hex", "short"]), st.sampled_from(["", "t-"]))
def test_an_order_id_comes_back_in_every_form(order_id: UUID, form: Form, before: str):
    assert read_id(before + written(order_id, form)) == order_id
    assert len(written(order_id, "hex")) == 32
    assert len(written(order_id, "short")) <= 28


@pytest.mark.parametrize("text", [None, "", "web_0815", "x" * 26, "0" * 26, "0" * 31, "{" + str(UUID(int=1)) + "}"])
def test_what_others_call_their_orders_is_no_id_of_ours(text: str | None):
    found = read_id(text)
    assert found is None or text == "x" * 26  # 26 letters could be one


def test_every_exchange_that_is_named_here_is_one_of_ccxts_and_can_be_opened():
    import ccxt  # noqa: PLC0415 - heavy

    named = exchanges.CARRIES_IDS | exchanges.FORMS.keys() | exchanges.KNOWS_IDS | exchanges.BY_OUR_ID
    named |= exchanges.ONE_BOOK | exchanges.STRANGERS
    assert named <= set(ccxt.exchanges)
    assert named <= exchanges.CARRIES_IDS
    refused: list[str] = []
    for one in sorted(exchanges.CARRIES_IDS):
        try:
            assert "limit" in Ccxt(one).capabilities.types
        except VenueRefused:
            refused.append(one)
    assert refused == []


def test_ccxt_is_not_imported_before_an_account_is_opened():
    code = (
        "import json, sys; from services.broker.adapters.ccxt_venue import Ccxt; Ccxt('kraken'); "
        "print(json.dumps([name for name in sys.modules if name.startswith('ccxt')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert json.loads(done.stdout) == []


# Quotes


async def test_an_exchanges_own_bid_and_ask_are_exact_and_as_of_the_asking(rig: CcxtRig):
    rig.exchange.quote = "100.10", "100.30"
    before = datetime.now(UTC)
    quote = (await rig.venue.quotes([BTC]))[BTC.key]
    assert (quote.bid, quote.ask) == (Decimal("100.10"), Decimal("100.30"))
    assert before <= quote.at <= datetime.now(UTC)


@pytest.mark.parametrize("quote", [("0.00", "100.02"), ("100.03", "100.02"), (None, "100.02"), ("100.00", None)])
async def test_a_side_without_anybody_and_a_crossed_book_are_no_quote(rig: CcxtRig, quote: Any):
    rig.exchange.quote = quote
    assert await rig.venue.quotes([BTC, Crypto("ETH", "USD"), Crypto("BTC", "EUR")]) == {}
