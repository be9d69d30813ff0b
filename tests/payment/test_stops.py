"""After a refund or a dispute nobody is billed for what they may not use: through the service as main wires it."""

from random import Random
from typing import Any

import pytest

from tests.fakes.stripe import Fault
from tests.payment.inprocess import InProcess, asked, books, follow, have, signed_up, subscriber


def subscription(running: InProcess) -> dict[str, Any]:
    (found,) = running.fake.all("subscription")
    return found


def last_charge(running: InProcess) -> str:
    return running.fake.all("charge", status="succeeded")[-1]["id"]


async def stops(running: InProcess) -> list[tuple[str, str]]:
    rows = await running.rows("select kind, status from stripe_calls where kind like 'stop.%' order by created_at, id")
    return [(row["kind"], row["status"]) for row in rows]


def audited(running: InProcess, action: str) -> list[dict[str, Any]]:
    return [body for kind, body in running.told if kind.startswith("api.") and body["action"] == action]


async def paid_in_all(running: InProcess, days: int) -> int:
    """Return how many charges went well when so many days have passed."""
    running.fake.advance(days=days)
    await follow(running)
    return len(running.fake.all("charge", status="succeeded"))


async def test_after_a_full_refund_nothing_more_is_charged(running: InProcess) -> None:
    user_id = await subscriber(running)
    running.fake.refund(last_charge(running))
    await follow(running)
    assert (await have(running, user_id))["entitlements"] == []
    assert subscription(running)["cancel_at_period_end"] is True
    assert await stops(running) == [("stop.at_end", "done")]
    (told,) = audited(running, "stop.subscription")
    assert told["details"]["because"] == f"stripe/{last_charge(running)}"
    assert await paid_in_all(running, 70) == 1
    assert subscription(running)["status"] == "canceled"
    assert (await have(running, user_id))["status"] == "canceled"


async def test_a_refund_in_part_or_of_an_earlier_period_ends_nothing(running: InProcess) -> None:
    user_id = await subscriber(running)
    first = last_charge(running)
    running.fake.refund(first, 900)
    assert await paid_in_all(running, 32) == 2
    running.fake.refund(first, 2000)
    await follow(running)
    assert await stops(running) == []
    assert (await have(running, user_id))["entitlements"] == ["pro"]


async def test_a_dispute_ends_the_subscription_with_its_period_and_a_lost_one_at_once(running: InProcess) -> None:
    user_id = await subscriber(running)
    dispute = running.fake.dispute(last_charge(running))
    await follow(running)
    assert subscription(running)["cancel_at_period_end"] is True
    for path, body in (
        ("resume", None),
        ("change-plan", {"plan": "max"}),
        ("change-plan?preview=true", {"plan": "max"}),
    ):
        refused = await asked(running, user_id, path, body, 409)
        assert refused["error"]["code"] == "NOT_NOW"
    running.fake.decide(dispute["id"], won=False)
    await follow(running)
    assert subscription(running)["status"] == "canceled"
    assert await stops(running) == [("stop.at_end", "done"), ("stop.now", "done")]
    assert await paid_in_all(running, 70) == 1


@pytest.mark.parametrize("won", [True, False], ids=["won", "lost"])
async def test_a_dispute_of_an_earlier_payment_leaves_the_period_that_is_paid_and_bills_nothing_more_unasked(
    running: InProcess, *, won: bool
) -> None:
    user_id = await subscriber(running)
    first = last_charge(running)
    assert await paid_in_all(running, 32) == 2
    dispute = running.fake.dispute(first)
    await follow(running)
    assert subscription(running)["cancel_at_period_end"] is True
    assert (await have(running, user_id))["entitlements"] == ["pro"]
    running.fake.decide(dispute["id"], won=won)
    await follow(running)
    found = await have(running, user_id)
    assert (found["status"], found["entitlements"]) == ("active", ["pro"])
    assert await stops(running) == [("stop.at_end", "done")]
    disputed = 0 if won else 2900
    assert await books(running) == {
        "assets:stripe": 2 * (2900 - 114) - 1500 - disputed,
        "expenses:disputes": disputed,
        "expenses:dispute_fees": 1500,
        "expenses:fees": 2 * 114,
        "income:subscriptions": -2 * 2900,
    }
    await asked(running, user_id, "resume", None, 200)
    await follow(running)
    assert await paid_in_all(running, 30) == 3


async def test_a_dispute_of_a_payment_for_what_is_over_does_not_touch_what_came_after(running: InProcess) -> None:
    user_id = await subscriber(running)
    first = last_charge(running)
    await asked(running, user_id, "cancel?now=true", None, 200)
    await follow(running)
    session = await asked(running, user_id, "checkout", {"plan": "pro"}, 201)
    assert running.fake.complete(session["id"])
    await follow(running)
    dispute = running.fake.dispute(first)
    await follow(running)
    running.fake.decide(dispute["id"], won=False)
    await follow(running)
    assert (await have(running, user_id))["entitlements"] == ["pro"]
    assert await stops(running) == []
    assert await paid_in_all(running, 32) == 3
    assert (await books(running))["expenses:disputes"] == 2900


async def test_who_wins_a_dispute_back_may_resume_and_is_not_stopped_again(running: InProcess) -> None:
    user_id = await subscriber(running)
    dispute = running.fake.dispute(last_charge(running))
    await follow(running)
    running.fake.decide(dispute["id"], won=True)
    await follow(running)
    found = await have(running, user_id)
    assert (found["entitlements"], found["cancel_at_period_end"]) == (["pro"], True)
    await asked(running, user_id, "resume", None, 200)
    await follow(running)
    await running.deliver(running.fake.events)
    await running.settle()
    assert subscription(running)["cancel_at_period_end"] is False
    assert await stops(running) == [("stop.at_end", "done")]
    assert await paid_in_all(running, 32) == 2


async def test_a_dispute_while_a_payment_is_due_stops_the_asking_for_it(running: InProcess) -> None:
    await subscriber(running)
    (card,) = {one["id"] for one in running.fake.all("payment_method")}
    running.fake.behave(card, "declines")
    running.fake.advance(days=32)
    await follow(running)
    assert subscription(running)["status"] == "past_due"
    running.fake.dispute(last_charge(running))
    await follow(running)
    assert subscription(running)["status"] == "canceled"
    running.fake.behave(card, "pays")
    assert await paid_in_all(running, 40) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_in_whatever_order_it_is_heard_of_one_call_is_made(running: InProcess, seed: int) -> None:
    user_id = await signed_up(running)
    session = await asked(running, user_id, "checkout", {"plan": "pro"}, 201)
    assert running.fake.complete(session["id"])
    running.fake.refund(last_charge(running))
    waiting = [event for event in running.fake.events if event["id"] in running.fake.api.books.undelivered] * 2
    Random(seed).shuffle(waiting)
    for event in waiting:
        await running.deliver([event])
        await running.settle()
    await follow(running)
    assert await stops(running) == [("stop.at_end", "done")]
    assert len(audited(running, "stop.subscription")) == 1


async def test_an_answer_that_never_came_is_looked_up_and_the_end_is_not_asked_for_twice(running: InProcess) -> None:
    await subscriber(running)
    path = f"/v1/subscriptions/{subscription(running)['id']}"
    running.fake.fail("POST", path, Fault(0, effect=True))
    running.fake.refund(last_charge(running))
    await follow(running)
    running.ahead_s += 120
    await follow(running)
    assert await stops(running) == [("stop.at_end", "done")]
    assert len([one for one in running.fake.requests if (one.method, one.path) == ("POST", path)]) == 1


async def test_an_end_that_could_not_be_sent_for_a_day_is_audited_and_not_tried_for_ever(running: InProcess) -> None:
    await subscriber(running)
    path = f"/v1/subscriptions/{subscription(running)['id']}"
    running.fake.fail("POST", path, *[Fault(429)] * 500)
    running.fake.refund(last_charge(running))
    await follow(running)
    assert await stops(running) == [("stop.at_end", "pending")]
    running.ahead_s += 24 * 3600
    await follow(running)
    await running.job("stripe-sweep")(running.service.clock())
    await follow(running)
    assert await stops(running) == [("stop.at_end", "failed")]
    assert len(audited(running, "stop.failed")) == 1
