"""An order's way through the service: asked for, checked, sent, filled; and what is refused on it."""

from decimal import Decimal
from uuid import uuid4

import pytest

from shared.contracts.broker import LegTerms, OrderTerms
from tests.broker.brokerage import USER, Brokerage, opened

D = Decimal


async def test_an_order_is_sent_filled_and_held(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10, limit=D("100.01"))
    assert await brokerage.state(order) == "accepted"
    await brokerage.desk(account).fill(order, D(4), D("100.00"))
    await brokerage.desk(account).fill(order, D(6), D("100.01"))
    await brokerage.reconcile(account)
    assert await brokerage.state(order) == "filled"
    assert await brokerage.held(account) == {"AAPL": D(10)}
    assert [one["state"] for one in brokerage.events("broker.order.changed.v1")] == [
        "pending_submit",
        "accepted",
        "filled",
    ]
    assert [one["quantity"] for one in brokerage.events("broker.order.filled.v1")] == ["4", "6"]
    assert brokerage.desk(account).submits() == [order]


@pytest.mark.parametrize(
    ("terms", "code"),
    [
        ({"limit": D("100.001")}, "TICK_SIZE"),
        ({"limit": D(150)}, "PRICE_COLLAR"),
        ({"limit": D(1)}, "PRICE_FAR"),
        ({"limit": None}, "LIMIT_REQUIRED"),
        ({"quantity": D(2000)}, "ORDER_TOO_LARGE"),
        ({"symbol": "NOPE"}, "UNKNOWN_SYMBOL"),
        ({"quantity": D(-1)}, "QUANTITY_INVALID"),
    ],
)
async def test_what_must_not_go_out_is_refused_with_a_code_and_never_reaches_the_venue(
    brokerage: Brokerage, terms: dict[str, object], code: str
) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, **terms)  # type: ignore[arg-type]
    assert code in await brokerage.codes(order)
    assert await brokerage.state(order) == "rejected"
    (told,) = brokerage.events("broker.order.rejected.v1")
    assert code in told["codes"]
    assert [one["action"] for one in brokerage.events("api.action.audited.v1")] == ["open.account", "refuse.order"]
    assert brokerage.desk(account).submits() == []


async def test_an_order_for_somebody_elses_account_is_refused(brokerage: Brokerage) -> None:
    account, stranger = await brokerage.account(), uuid4()
    terms = OrderTerms(legs=(LegTerms(symbol="AAPL", side="buy"),), type="limit", quantity=D(1), limit=D(100))
    await brokerage.place_terms(account, terms, user_id=stranger)
    (told,) = brokerage.events("broker.order.rejected.v1")
    assert (told["codes"], told["user_id"]) == (["NO_SUCH_ACCOUNT"], str(stranger))
    assert told["account_id"] != str(account)  # its owner hears nothing of it
    (audited,) = [one for one in brokerage.events("api.action.audited.v1") if one["action"] == "refuse.order"]
    assert audited["details"]["account"] == str(account)
    assert await brokerage.rows("select id from orders") == []
    body = {"account_id": str(account), "terms": terms.model_dump(mode="json")}
    assert (await brokerage.ask("POST", "/broker/orders", body, user_id=stranger))[0] == 404
    assert (await brokerage.ask("POST", "/broker/orders", body, user_id=USER))[0] == 202


async def test_orders_are_listed_by_their_state_and_a_state_that_is_none_is_refused(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account)
    path = f"/broker/orders?account_id={account}&state="
    for state, found in (("accepted", [str(order)]), ("canceled", [])):
        status, answer = await brokerage.ask("GET", path + state)
        assert (status, [one["id"] for one in answer["orders"]]) == (200, found)
    for state in ("cancelled", "Accepted", ""):
        status, answer = await brokerage.ask("GET", path + state)
        assert status == 422, answer
        assert "state" in str(answer), answer


async def test_a_submit_whose_answer_is_lost_is_looked_up_and_not_sent_again(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    brokerage.desk(account).lose_next("answer")
    order = await brokerage.place(account)
    assert await brokerage.state(order) == "unknown"
    await brokerage.settle(wholly=True)
    assert await brokerage.state(order) == "accepted"
    assert brokerage.desk(account).submits() == [order]


async def test_a_submit_that_never_arrived_is_sent_once_more_after_a_look_up(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    brokerage.desk(account).lose_next("request")
    order = await brokerage.place(account)
    await brokerage.settle(wholly=True)
    assert await brokerage.state(order) == "accepted"
    assert (await brokerage.order(order))["submits"] == 2
    assert brokerage.desk(account).submits() == [order]


async def test_a_canceled_order_is_canceled_at_the_venue_and_keeps_what_was_filled(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    await brokerage.desk(account).fill(order, D(3), D(100))
    await brokerage.cancel(account, order)
    await brokerage.reconcile(account)
    assert await brokerage.state(order) == "canceled"
    assert await brokerage.held(account) == {"AAPL": D(3)}


async def test_a_replaced_order_is_another_order(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    by = await brokerage.replace(account, order, limit="99.50")
    await brokerage.reconcile(account)
    assert (await brokerage.state(order), await brokerage.state(by)) == ("replaced", "accepted")
    assert (await brokerage.order(order))["replaced_by"] == by
    await brokerage.desk(account).fill(by, D(10), D("99.50"))
    await brokerage.reconcile(account)
    again = await brokerage.replace(account, by, limit="99.40")
    (told,) = brokerage.events("broker.order.rejected.v1")
    assert (told["order_id"], told["codes"]) == (str(again), ["ORDER_OVER"])


async def test_a_position_is_closed_once_its_orders_are_canceled(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    await brokerage.desk(account).fill(order, D(10), D(100))
    await brokerage.reconcile(account)
    selling = await brokerage.place(account, quantity=4, side="sell", limit=D(101))
    closing = await brokerage.close_position(account)
    await brokerage.settle(wholly=True)
    assert await brokerage.state(selling) == "canceled"
    assert brokerage.desk(account).submits() == [order, selling, closing]
    await brokerage.desk(account).fill(closing, D(10), D(100))
    await brokerage.reconcile(account)
    assert await brokerage.held(account) == {}


async def test_nothing_is_sent_while_trading_is_halted(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    assert (await brokerage.ask("POST", "/broker/halt", {}))[0] == 204
    halted = await brokerage.place(account)
    assert "USER_HALTED" in await brokerage.codes(halted)
    assert (await brokerage.ask("DELETE", "/broker/halt"))[0] == 204
    assert (await brokerage.ask("POST", "/broker/halt", {"scope": "all"}))[0] == 403
    assert (await brokerage.ask("POST", "/broker/halt", {"scope": "all"}, role="admin"))[0] == 204
    stopped = await brokerage.place(account)
    assert "HALTED" in await brokerage.codes(stopped)
    assert brokerage.desk(account).submits() == []


@pytest.mark.parametrize("trading", ["paper", "Live", "live ", "", "true"])
async def test_a_live_account_needs_a_deployment_that_reads_exactly_live(database_url: str, trading: str) -> None:
    async with opened(database_url, trading=trading) as brokerage:
        body = {"venue": "memory", "mode": "live", "name": "mine"}
        status, answer = await brokerage.ask("POST", "/broker/accounts", body)
        assert (status, answer["error"]["code"]) == (422, "ACCOUNT_NOT_ALLOWED")


async def test_a_position_that_differs_from_the_venues_is_mended_told_and_flagged(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    desk = brokerage.desk(account)
    await desk.fill(order, D(10), D(100))
    await brokerage.reconcile(account)
    desk.drift(desk.find(order).order.terms.legs[0].instrument, D(7))
    brokerage.clock.advance(31)  # the order's fill has long been told
    await brokerage.reconcile(account)
    assert await brokerage.held(account) == {"AAPL": D(7)}
    (told,) = brokerage.events("broker.positions.drifted.v1")
    assert told["drifts"] == [{"symbol": "AAPL", "ours": "10", "venue": "7"}]
    status, flags = await brokerage.ask("GET", f"/broker/flags?account_id={account}")
    assert (status, [one["code"] for one in flags]) == (200, ["POSITION_DRIFT"])


async def test_a_quiet_order_is_looked_up(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    order = await brokerage.place(account, quantity=10)
    await brokerage.desk(account).fill(order, D(10), D(100))
    brokerage.clock.advance(120)
    await brokerage.sweep()
    assert await brokerage.state(order) == "filled"
