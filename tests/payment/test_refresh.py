"""Events are hints: late, doubled, out of order, lost; what counts is what Stripe says when it is asked."""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from typing import Any

import pytest

from services.payment.service import refresh
from shared.db import Database, Tx
from tests.conftest import eventually
from tests.fakes.stripe import FakeStripe, Fault
from tests.payment.refreshing import Bench, on


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
