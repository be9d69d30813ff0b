"""What Stripe says of subscriptions and customers, and what that is here: whose, in which state, which counts."""

from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from services.payment.service import apply, refresh
from shared.contracts.base import Event
from shared.db import Database, Tx
from tests.fakes.stripe import FakeStripe
from tests.payment.refreshing import GRACE, Bench


@pytest.fixture
async def bench(open_database: Callable[[str], Database]) -> AsyncGenerator[Bench]:
    with FakeStripe() as fake:
        bench = Bench(open_database("payment"), fake)
        yield bench
        await bench.close()


async def test_a_subscription_that_is_past_due_has_access_until_the_invoice_is_a_week_old(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    bench.fake.set_card(customer, bench.fake.card("declines"))
    bench.advance(days=32)
    invoice = bench.fake.get("invoice", bench.fake.get("subscription", made)["latest_invoice"])
    for _ in range(2):  # it does not depend on when we hear
        await bench.hint(*bench.fake.events)
        await bench.settle()
        row = await bench.subscription(made)
        assert row is not None
        assert row["status"] == "past_due"
        assert row["grace_until"] == datetime.fromtimestamp(invoice["created"], UTC) + GRACE
        bench.clock.advance(3600)
    assert await bench.states() == ["past_due"]


async def test_a_second_unpaid_invoice_gives_no_second_week(open_database: Callable[[str], Database]):
    with FakeStripe(after_retries="past_due") as fake:
        bench = Bench(open_database("payment"), fake)
        _, customer = await bench.user()
        made = bench.subscribe(customer)
        fake.set_card(customer, card := fake.card("declines"))
        bench.advance(days=32)
        bench.advance(days=31)
        first, second = fake.all("invoice", status="open")
        await bench.hint(*fake.events)
        await bench.settle()
        row = await bench.subscription(made)
        assert row is not None
        assert (row["status"], row["grace_until"]) == ("past_due", _at(first) + GRACE)
        assert [body["entitlements"] for _, body in await bench.told("payment.subscription")] == [[]]

        fake.behave(card["id"], "pays")
        fake.authenticate(first["id"])
        await bench.hint(*[one for one in fake.events if one["type"] == "invoice.paid"])
        await bench.settle()
        row = await bench.subscription(made)
        assert row is not None
        assert (row["status"], row["grace_until"]) == ("past_due", _at(second) + GRACE), "the first is paid"
        await bench.close()


def _at(invoice: dict[str, Any]) -> datetime:
    return datetime.fromtimestamp(invoice["created"], UTC)


@pytest.mark.parametrize(
    ("told", "ours"),
    [
        ({"status": "unpaid"}, "expired"),
        ({"status": "incomplete_expired"}, "expired"),
        ({"status": "paused"}, "paused"),
        ({"pause_collection": {"behavior": "void", "resumes_at": None}}, "paused"),
        ({"pause_collection": {"behavior": "keep_as_draft", "resumes_at": None}}, "active"),
    ],
)
async def test_stripes_words_become_ours(bench: Bench, told: dict[str, Any], ours: str):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    bench.fake.get("subscription", made).update(told)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert (await bench.states())[-1] == ours


async def test_a_first_payment_under_way_is_no_subscription_yet(bench: Bench):
    _, customer = await bench.user()
    bench.fake.set_card(customer, bench.fake.card("asks"))
    made = bench.subscribe(customer, payment_behavior="allow_incomplete")
    assert bench.fake.get("subscription", made)["status"] == "incomplete"
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert await bench.subscription(made) is None
    bench.fake.authenticate(bench.fake.get("subscription", made)["latest_invoice"])
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert await bench.states() == ["active"]


async def test_a_second_subscription_is_set_aside_and_taken_when_the_first_is_over(bench: Bench):
    _, customer = await bench.user()
    first = bench.subscribe(customer)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    second = bench.subscribe(customer)
    before = apply.SECOND._value.get()
    for _ in range(3):
        await bench.hint(*bench.fake.events)
        await bench.settle()
    assert await bench.subscription(second) is None
    assert (await bench.refreshed(second))["status"] == "done"
    assert apply.SECOND._value.get() == before + 3
    (audited,) = [body for _, body in await bench.told("api.action")]
    assert (audited["action"], audited["subject"]) == ("set_aside.subscription", second)

    bench.call("DELETE", f"/v1/subscriptions/{first}")
    await bench.hint(bench.fake.events[-1])
    await bench.settle()
    row = await bench.subscription(second)
    assert row is not None
    assert row["status"] == "active"
    assert await bench.states() == ["active", "canceled", "active"]


async def test_one_that_is_paid_after_all_waits_for_the_one_that_took_its_place(bench: Bench):
    _, customer = await bench.user()
    first = bench.subscribe(customer)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    stored = bench.fake.api.books.kinds["subscription"]
    stored[first]["status"] = "unpaid"
    await _look_at(bench, first)
    second = bench.subscribe(customer)
    await _look_at(bench, second)
    stored[first]["status"] = "active"
    await _look_at(bench, first)
    assert (await bench.refreshed(first))["status"] == "done"
    assert await bench.states() == ["active", "expired", "active"]
    (audited,) = [body for _, body in await bench.told("api.action")]
    assert (audited["action"], audited["subject"]) == ("set_aside.subscription", first)

    bench.call("DELETE", f"/v1/subscriptions/{second}")
    await _look_at(bench, second)
    assert await bench.states() == ["active", "expired", "active", "canceled", "active"]
    row = await bench.subscription(first)
    assert row is not None
    assert row["status"] == "active"


async def test_a_stranger_is_put_off_and_comes_in_when_somebody_knows_them(bench: Bench):
    customer = bench.call("POST", "/v1/customers", email="a@example.org")["id"]
    bench.fake.set_card(customer, bench.fake.card())
    made = bench.subscribe(customer)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    row = await bench.refreshed(made)
    assert (row["status"], row["attempts"]) == ("pending", 1)
    assert row["due_at"] > bench.clock()
    await bench.know(UUID(int=5), customer)
    bench.clock.advance(60)
    await bench.settle()
    assert await bench.states() == ["active"]


async def test_a_stranger_for_ever_is_counted_audited_and_begins_anew_with_the_next_hint(bench: Bench):
    customer = bench.call("POST", "/v1/customers", email="a@example.org")["id"]
    bench.fake.set_card(customer, bench.fake.card())
    made = bench.subscribe(customer)
    created = next(one for one in bench.fake.events if one["type"] == "customer.subscription.created")
    before = refresh.STUCK.labels("subscription")._value.get()
    for _ in range(2):
        await bench.hint(created)
        for _ in range(12):
            await bench.settle()
            bench.clock.advance(301)
        row = await bench.refreshed(made)
        assert (row["status"], row["attempts"]) == ("failed", 12)
    assert refresh.STUCK.labels("subscription")._value.get() == before + 2
    (audited,) = [body for _, body in await bench.told("api.action")]
    assert (audited["action"], audited["subject"]) == ("apply.stripe_object", made)
    await bench.know(UUID(int=5), customer)
    await bench.hint(created)
    await bench.settle()
    assert await bench.states() == ["active"]


async def test_the_user_whom_a_customer_names_is_linked_once(bench: Bench):
    user_id, first = await bench.user(linked=False)
    bench.subscribe(first)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    bench.clock.advance(30)  # what was asked for before its customer waits
    await bench.settle()
    assert await bench.one("select stripe_id from customers") == first
    assert await bench.states() == ["active"]
    bench.call("POST", "/v1/customers", email="a@example.org", metadata={"user_id": str(user_id)})
    await bench.hint(bench.fake.events[-1])
    await bench.settle()
    assert await bench.one("select stripe_id from customers") == first
    assert [body["action"] for _, body in await bench.told("api.action")] == ["set_aside.customer"]


async def test_a_deleted_customer_is_nobodys_and_the_subscription_ends(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    bench.call("DELETE", f"/v1/customers/{customer}")
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert await bench.states() == ["active", "canceled"]
    assert (await bench.rows("select stripe_id from customers"))[0]["stripe_id"] is None
    row = await bench.subscription(made)
    assert row is not None
    assert row["status"] == "canceled"


async def test_what_stripe_knows_no_more_is_canceled(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    del bench.fake.api.books.kinds["subscription"][made]
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert await bench.states() == ["active", "canceled"]


async def _look_at(bench: Bench, subscription: str) -> None:
    async def want(tx: Tx) -> list[Event]:
        await bench.refresh.want(tx, [("subscription", subscription)])
        return []

    await bench.door.publish(want)
    await bench.settle()


async def test_the_latest_invoice_is_fetched_with_its_subscription_once(bench: Bench):
    """Without it nobody would know what a refund or a dispute of its payment holds back."""
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    invoice = bench.fake.get("subscription", made)["latest_invoice"]
    event = next(one for one in bench.fake.events if one["type"] == "customer.subscription.created")
    for _ in range(2):
        await bench.hint(event)
        await bench.settle()
    assert bench.fetches(f"subscriptions/{made}") == 2
    assert bench.fetches(f"invoices/{invoice}") == 1
    async with bench.database.read() as tx:
        assert await bench.mirror.bodies(tx, "invoice", [invoice])
