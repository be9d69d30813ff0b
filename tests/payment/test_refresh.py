"""Events are hints: late, doubled, out of order, lost; what counts is what Stripe says when it is asked."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.payment.service import apply, refresh
from shared.contracts.base import Event
from shared.db import Database, Tx
from tests.conftest import eventually
from tests.fakes.stripe import FakeStripe, Fault
from tests.payment.refreshing import GRACE, Bench, on


@pytest.fixture
async def bench(open_database: Callable[[str], Database]) -> AsyncGenerator[Bench]:
    with FakeStripe() as fake:
        bench = Bench(open_database("payment"), fake)
        yield bench
        await bench.close()


async def test_a_subscription_becomes_what_stripe_says(bench: Bench):
    user_id, customer = await bench.user()
    made = bench.subscribe(customer, trial_period_days="7")
    await bench.hint(*bench.fake.events)
    await bench.settle()
    row = await bench.subscription(made)
    assert row is not None
    assert (row["user_id"], row["plan"], row["status"]) == (user_id, "pro", "trialing")
    assert row["trial_end"] == row["current_period_end"] == bench.clock() + timedelta(days=7)
    bench.advance(days=8)
    await bench.hint(bench.fake.events[-1])
    await bench.settle()
    assert await bench.states() == ["trialing"]  # the last event was of another object
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert await bench.states() == ["trialing", "active"]


async def test_shuffled_doubled_and_late_events_end_as_the_orderly_ones(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer, trial_period_days="7")
    bench.advance(days=40)
    bench.call("DELETE", f"/v1/subscriptions/{made}")
    events = bench.fake.events * 2
    random.Random(7).shuffle(events)
    for event in events:
        await bench.hint(event)
        await bench.settle()
    row = await bench.subscription(made)
    assert row is None or row["status"] == "canceled"
    assert await bench.states() in ([], ["canceled"])
    assert set(await bench.rows("select distinct status from refreshes")) == {("done",)}


async def test_a_late_event_never_moves_the_state_backwards(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    created = next(one for one in bench.fake.events if one["type"] == "customer.subscription.created")
    await bench.hint(created)
    await bench.settle()
    bench.call("DELETE", f"/v1/subscriptions/{made}")
    await bench.hint(bench.fake.events[-1])
    await bench.settle()
    await bench.hint(created)
    await bench.settle()
    assert await bench.states() == ["active", "canceled"]


async def test_many_hints_cost_one_fetch(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    event = next(one for one in bench.fake.events if one["type"] == "customer.subscription.created")
    await bench.hint(*[event] * 50)
    await bench.settle()
    assert bench.fetches(f"subscriptions/{made}") == 1
    assert (await bench.refreshed(made))["wanted"] == 50


async def test_a_hint_that_comes_while_its_object_is_fetched_asks_again(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    event = next(one for one in bench.fake.events if one["type"] == "customer.subscription.created")
    held: list[str] = []

    async def hold(tx: Tx, told: Any, object_id: str) -> list[Any]:
        """Stripe has answered; before that is applied, the subscription ends, and we hear of it."""
        if not held:
            held.append(told["status"])
            bench.call("DELETE", f"/v1/subscriptions/{made}")
            await bench.hint(bench.fake.events[-1])
        return []

    on(bench, "subscription", hold)
    await bench.hint(event)
    await bench.settle()
    assert held == ["active"]
    assert bench.fetches(f"subscriptions/{made}") == 2
    assert await bench.states() == ["active", "canceled"]


async def test_an_answer_whose_lease_is_over_is_not_applied(bench: Bench):
    """A worker that hung comes back with what Stripe said then; another has asked since."""
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    event = next(one for one in bench.fake.events if one["type"] == "customer.subscription.created")
    hung, go_on = asyncio.Event(), asyncio.Event()
    fetch = bench.stripe.fetch

    class Slow:
        async def fetch(self, kind: str, object_id: str) -> Any:
            told = await fetch(kind, object_id)
            hung.set()
            await go_on.wait()
            return told

    await bench.hint(event)
    bench.refreshing._stripe = Slow()  # pyright: ignore[reportAttributeAccessIssue] - as much of it as is asked
    await bench.worker.turn()
    await hung.wait()
    bench.refreshing._stripe = bench.stripe
    bench.call("DELETE", f"/v1/subscriptions/{made}")
    bench.clock.advance(31)
    other = bench.another_worker()
    await other.turn()  # the lease ran out: unknown, to be asked again
    bench.clock.advance(5)
    await other.turn()
    await other.idle()
    assert await bench.states() == ["canceled"]  # it was over before we knew it
    go_on.set()
    await bench.worker.idle()
    assert await bench.states() == ["canceled"]
    assert (await bench.refreshed(made))["status"] == "done"


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


async def test_while_stripe_is_away_nothing_is_lost(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    bench.fake.fail("GET", "/v1/.*", *[Fault(500)] * 30)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert (await bench.refreshed(made))["last_error"] == "Stripe answered 500"
    for _ in range(8):
        bench.clock.advance(60)
        await bench.settle()
    assert await bench.states() == ["active"]


async def test_what_stripe_asks_to_wait_for_costs_no_attempt(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    bench.fake.fail("GET", f"/v1/subscriptions/{made}", Fault(429))
    await bench.hint(*bench.fake.events)
    await bench.settle()
    row = await bench.refreshed(made)
    assert (row["status"], row["attempts"]) == ("pending", 0)
    bench.clock.advance(2)
    await bench.settle()
    assert await bench.states() == ["active"]


async def test_an_applier_that_breaks_takes_all_it_did_back_and_is_tried_again(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    broken = [True]

    async def breaks(tx: Tx, told: Any, object_id: str) -> list[Any]:
        if broken:
            raise KeyError(broken.pop())
        return []

    on(bench, "subscription", breaks)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    assert await bench.subscription(made) is None
    assert (await bench.refreshed(made))["last_error"] == "unexpected KeyError"
    bench.clock.advance(10)
    await bench.settle()
    assert await bench.states() == ["active"]


async def test_a_finished_checkout_asks_for_what_it_made(bench: Bench):
    user_id, customer = await bench.user()
    params = {"mode": "subscription", "line_items": [{"price": "price_pro", "quantity": "1"}], "customer": customer}
    params |= {"client_reference_id": str(user_id), "success_url": "https://a.example/ok"}
    session = bench.call("POST", "/v1/checkout/sessions", **params)["id"]
    bench.fake.complete(session)
    completed = next(one for one in bench.fake.events if one["type"] == "checkout.session.completed")
    await bench.hint(completed)
    await bench.settle()
    assert await bench.states() == ["active"]


async def test_entitlements_are_mirrored_by_their_customer(bench: Bench):
    _, customer = await bench.user()
    bench.fake.feature(bench.fake.get("price", "price_pro")["product"], "pro")
    bench.subscribe(customer)
    await bench.hint(*bench.fake.events)
    await bench.settle()
    kind = "entitlements.active_entitlement_summary"
    (row,) = await bench.rows(f"select * from stripe_objects where kind = '{kind}'")
    assert (row["id"], row["customer"]) == (customer, customer)
    assert [one["lookup_key"] for one in row["body"]["data"]] == ["pro"]


async def test_what_we_do_not_follow_is_counted_and_asks_nothing(bench: Bench):
    counted = refresh.UNHANDLED.labels("topup.created")
    before = counted._value.get()
    thing = {"object": "topup", "id": "tu_1"}
    odd = {"id": "evt_odd", "object": "event", "type": "topup.created", "created": 1, "data": {"object": thing}}
    await bench.hint(odd)
    assert counted._value.get() == before + 1
    assert await bench.rows("select * from refreshes") == []


async def test_two_workers_never_apply_one_object_at_the_same_time(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    applying = 0
    seen: list[int] = []

    async def look(tx: Tx, told: Any, object_id: str) -> list[Any]:
        nonlocal applying
        applying += 1
        seen.append(applying)
        await asyncio.sleep(0)
        applying -= 1
        return []

    on(bench, "subscription", look)
    event = next(one for one in bench.fake.events if one["type"] == "customer.subscription.created")
    other = bench.another_worker()
    for _ in range(5):
        await bench.hint(event)
        await asyncio.gather(bench.worker.turn(), other.turn())
        await bench.hint(event)
        await asyncio.gather(bench.worker.idle(), other.idle())
    await bench.settle()
    await eventually(lambda: not applying)
    assert set(seen) == {1}
    assert (await bench.refreshed(made))["status"] == "done"


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
