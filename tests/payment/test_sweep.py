"""Webhooks may be lost for a day, or for ever: the sweep finds what differs, mends it and counts it."""

from collections.abc import AsyncGenerator, Callable
from typing import Any
from uuid import UUID

import pytest

from services.payment.domain.stripe import KINDS, same
from services.payment.main import build
from services.payment.service import intake, refresh
from services.payment.service.sweep import NothingListed
from services.payment.workers.sweep import SWEEP
from shared.db import Database
from shared.errors import Transient
from shared.service import Environment
from tests.conftest import eventually
from tests.fakes.stripe import FakeStripe, Fault
from tests.payment.refreshing import Bench


@pytest.fixture
async def bench(open_database: Callable[[str], Database]) -> AsyncGenerator[Bench]:
    with FakeStripe() as fake:
        bench = Bench(open_database("payment"), fake)
        yield bench
        await bench.close()


async def swept(bench: Bench) -> None:
    """Sweep; what it tells goes to the consumer, as Kafka would carry it."""
    await bench.sweep.run(bench.clock())
    told = {body["event_id"] for _, body in await bench.told("payment.webhook")} - bench.carried
    bench.carried |= told
    await bench.hint(*(one for one in bench.fake.events if one["id"] in told))
    await bench.settle()


def drift(kind: str, found: str) -> float:
    return refresh.DRIFT.labels(kind, found)._value.get()


async def test_a_day_without_webhooks_is_made_up_for(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    bench.advance(days=1)
    bench.call("POST", f"/v1/subscriptions/{made}", cancel_at_period_end="true")
    missed = intake.SWEPT._value.get()
    await swept(bench)
    row = await bench.subscription(made)
    assert row is not None
    assert (row["status"], row["cancel_at_period_end"]) == ("active", True)
    events = len(bench.fake.events)
    assert intake.SWEPT._value.get() == missed + events
    kept = await bench.rows("select * from webhooks")
    assert len(kept) == events
    assert {row["swept"] for row in kept} == {True}


async def test_a_sweep_looks_thirty_days_back_and_no_further(bench: Bench):
    _, customer = await bench.user()
    bench.subscribe(customer)
    bench.advance(days=2)
    bench.call("POST", f"/v1/customers/{customer}", description="changed, and nobody heard of it")
    bench.advance(days=28, hours=1)
    since = bench.fake.now - 30 * 86_400
    await bench.sweep.run(bench.clock())
    told = {body["event_id"] for _, body in await bench.told("payment.webhook")}
    assert told == {one["id"] for one in bench.fake.events if one["created"] >= since}
    assert 0 < len(told) < len(bench.fake.events)
    asked = {one.path: one.params["created"]["gte"] for one in bench.fake.requests if "created" in one.params}
    assert {int(at) for at in asked.values()} == {since}
    recent = {f"/v1/{about.path.partition('/{id}')[0]}" for about in KINDS.values() if about.recent}
    assert asked.keys() == {"/v1/events"} | recent


async def test_events_that_stripe_has_forgotten_leave_objects_that_differ(bench: Bench):
    """Their delivery counts as done, or they are older than 30 days: only the objects tell."""
    user_id, customer = await bench.user()
    made = bench.subscribe(customer)
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    before = drift("subscription", "missing")
    await swept(bench)
    assert await bench.states() == ["active"]
    assert drift("subscription", "missing") == before + 1
    assert await bench.rows("select * from webhooks") == []

    bench.call("DELETE", f"/v1/subscriptions/{made}")
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    before = drift("subscription", "changed")
    await swept(bench)
    assert await bench.states() == ["active", "canceled"]
    assert drift("subscription", "changed") == before + 1
    assert (await bench.rows("select user_id from subscriptions"))[0]["user_id"] == user_id


async def test_where_nothing_differs_a_sweep_asks_for_no_object_and_changes_nothing(bench: Bench):
    _, customer = await bench.user()
    bench.subscribe(customer)
    bench.advance(hours=2)
    bench.fake.refund(bench.fake.charge_of(bench.fake.all("invoice")[0]["id"])["id"], 100)
    await swept(bench)
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    asked, wanted = len(bench.fake.requests), await bench.rows("select * from refreshes order by id")
    assert {row["kind"] for row in wanted} >= {"subscription", "customer", "invoice", "charge", "refund", "price"}
    await swept(bench)
    lists = {f"/v1/{about.path.partition('/{id}')[0]}" for about in KINDS.values()} | {"/v1/events"}
    assert {one.path for one in bench.fake.requests[asked:]} <= lists
    assert await bench.rows("select * from refreshes order by id") == wanted


async def test_an_event_that_came_by_itself_meanwhile_is_not_taken_twice(bench: Bench):
    _, customer = await bench.user()
    bench.subscribe(customer)
    await bench.sweep.run(bench.clock())
    first = await bench.told("payment.webhook")
    await bench.sweep.run(bench.clock())
    assert await bench.told("payment.webhook") == first


async def test_lists_longer_than_a_page_are_read_to_their_end(bench: Bench):
    customers = [bench.call("POST", "/v1/customers", email=f"{n}@example.org")["id"] for n in range(230)]
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    await bench.sweep.run(bench.clock())
    wanted = await bench.rows("select object_id from refreshes where kind = 'customer'")
    assert {row["object_id"] for row in wanted} == set(customers)


async def test_what_stripe_lists_no_more_is_asked_for_and_found_deleted(bench: Bench):
    _, customer = await bench.user()
    other = bench.call("POST", "/v1/customers", email="b@example.org")["id"]
    await swept(bench)
    bench.call("DELETE", f"/v1/customers/{customer}")
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    bench.advance(hours=1)
    before = drift("customer", "deleted")
    await swept(bench)
    assert drift("customer", "deleted") == before + 1
    assert (await bench.rows("select stripe_id from customers"))[0]["stripe_id"] is None
    alive = await bench.rows("select id from stripe_objects where kind = 'customer' and not deleted")
    assert [row["id"] for row in alive] == [other]


async def test_an_account_that_lists_nothing_of_ours_ends_no_subscription(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    await swept(bench)
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    bench.advance(hours=1)
    del bench.fake.api.books.kinds["subscription"][made]
    with pytest.raises(NothingListed):
        await bench.sweep.run(bench.clock())
    await bench.settle()
    assert await bench.states() == ["active"]


async def test_a_kind_of_which_nothing_is_listed_keeps_what_is_new_from_nobody(bench: Bench):
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    await swept(bench)
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    bench.advance(hours=1)
    del bench.fake.api.books.kinds["subscription"][made]
    other = bench.call("POST", "/v1/customers", email="b@example.org")["id"]
    bench.fake.set_card(other, bench.fake.card())
    invoice = bench.fake.get("subscription", bench.subscribe(other))["latest_invoice"]
    bench.fake.api.books.kinds["subscription"].clear()
    bench.call("DELETE", f"/v1/customers/{customer}")
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    with pytest.raises(NothingListed):
        await bench.sweep.run(bench.clock())
    wanted = {row["object_id"] for row in await bench.rows("select object_id from refreshes where status = 'pending'")}
    assert invoice in wanted
    assert customer not in wanted, "nothing is taken for gone"


async def test_a_second_subscription_is_taken_by_the_sweep_when_nothing_is_in_its_way(bench: Bench):
    """The first was a manual one, and whoever ended it knew nothing of Stripe."""
    user_id, customer = await bench.user()
    await bench.execute(
        "insert into subscriptions (id, user_id, provider, plan, status, created_at, updated_at) "
        f"values (gen_random_uuid(), '{user_id}', 'manual', 'pro', 'active', now(), now())"
    )
    made = bench.subscribe(customer)
    await swept(bench)
    assert await bench.subscription(made) is None
    await bench.execute("update subscriptions set status = 'expired'")
    await swept(bench)
    assert await bench.states() == ["active"]


async def test_a_stranger_is_tried_again_with_each_sweep(bench: Bench):
    customer = bench.call("POST", "/v1/customers", email="a@example.org")["id"]
    bench.fake.set_card(customer, bench.fake.card())
    made = bench.subscribe(customer)
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    for _ in range(12):
        await swept(bench)
        bench.clock.advance(301)
    assert (await bench.refreshed(made))["status"] == "failed"
    await bench.know(UUID(int=5), customer)
    await swept(bench)
    assert await bench.states() == ["active"]


async def test_a_sweep_that_stripe_breaks_off_fails_and_the_next_one_goes_on(bench: Bench):
    _, customer = await bench.user()
    bench.subscribe(customer)
    bench.fake.fail("GET", "/v1/subscriptions", *[Fault(500)] * 3)
    with pytest.raises(Transient):
        await bench.sweep.run(bench.clock())
    await swept(bench)
    assert await bench.states() == ["active"]


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ({"a": 1}, {"a": 1, "b": None}, True),
        ({"customer": "cus_1"}, {"customer": {"id": "cus_1", "email": "x"}}, True),
        ({"customer": "cus_1"}, {"customer": {"id": "cus_2"}}, False),
        ({"receipt_url": "a"}, {"receipt_url": "b"}, True),
        ({"items": [1, 2]}, {"items": [2, 1]}, False),
        ({"items": [{"a": 1}]}, {"items": [{"a": 2}]}, False),
        ({"a": None}, {"a": {}}, False),
        ({"a": True}, {"a": "True"}, False),
        (None, {"a": 1}, False),
    ],
)
def test_two_answers_are_held_against_each_other(one: Any, other: Any, alike: bool):
    assert same(one, other) is same(other, one) is alike


async def test_the_service_sweeps_when_it_starts_and_every_quarter_of_an_hour(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, bench: Bench
):
    monkeypatch.setenv("OPENBELL_PAYMENT_STRIPE_KEY", bench.fake.key)
    monkeypatch.setenv("OPENBELL_PAYMENT_STRIPE_BASE", bench.fake.url)
    _, customer = await bench.user()
    made = bench.subscribe(customer)
    bench.fake.delivered(*[one["id"] for one in bench.fake.events])
    service = build(environment)
    async with service.running():

        async def taken() -> bool:
            return bool(await bench.subscription(made))

        async def done() -> bool:
            (job,) = [job for job in await service.scheduler.jobs() if job.name == SWEEP]
            return (job.cron, job.last_outcome) == ("*/15 * * * *", "done")

        await eventually(taken, 60)
        await eventually(done, 60)
    versions = {one.version for one in bench.fake.requests}
    assert versions == {"2026-10-28.endive"}
