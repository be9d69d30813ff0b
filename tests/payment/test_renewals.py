"""Renewals by hand, reminders and dunning: what is due by the day, told once, whatever runs were missed."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text

from services.payment.domain.dunning import DUNNING, OVER_AFTER, due, now_is
from services.payment.domain.subscriptions import State
from services.payment.main import build
from services.payment.service.renewals import SomeRenewalsFailed
from shared.db import Database
from shared.schedule import Scheduler
from shared.service import Environment
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.payment.ledger_bench import DAY, GRACE, NOW, Bench

END = datetime(2026, 12, 15, 9, 30, tzinfo=UTC)
MIDNIGHT = datetime(2026, 12, 1, tzinfo=UTC)
PAID = State("crypto", None, "pro", "active", END - 30 * DAY, END)


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


async def subscribed(bench: Bench, state: State = PAID) -> tuple[UUID, UUID]:
    user, subscription = await bench.user(None), uuid4()
    await bench.become(user, state, subscription)
    return user, subscription


async def live(bench: Bench, first: datetime, days: int) -> list[tuple[str, str, Any]]:
    """Run each midnight; return what was told: the day, the status or days left, access or the next step."""
    told: list[tuple[str, str, Any]] = []
    for number in range(days):
        bench.clock.now = first + number * DAY
        before = len(await bench.told())
        await bench.renewals.run(bench.clock.now)
        told += [_line(bench.clock.now, name, body) for name, body in (await bench.told())[before:]]
    return told


def _line(at: datetime, name: str, body: dict[str, Any]) -> tuple[str, str, Any]:
    day = f"{at:%m-%d}"
    if name == "renewal.due":
        return day, f"{body['days_left']} days", body["next_step_at"][5:10]
    return day, body["status"], tuple(body["entitlements"])


# Rules


def test_the_steps_are_those_that_are_promised():
    assert (*DUNNING, OVER_AFTER) == (0, 2, 7, 14, 21, 22)


@given(hours=st.integers(-24 * 40, 24 * 40))
def test_days_left_are_rounded_up_and_the_next_step_is_still_to_come(hours: int):
    now = END + timedelta(hours=hours)
    state = now_is(PAID, now, GRACE)
    step = due(state, now)
    if hours < -7 * 24 or hours >= OVER_AFTER * 24:
        assert step is None
        return
    assert step is not None
    assert step.days * 24 <= hours
    assert step.next_at > now
    assert now + (step.days_left - 1) * DAY < END <= now + step.days_left * DAY


@given(hours=st.integers(-24 * 40, 24 * 40), status=st.sampled_from(["trialing", "active", "past_due"]))
def test_what_a_subscription_is_does_not_depend_on_how_often_one_looked(hours: int, status: Any):
    now = END + timedelta(hours=hours)
    state = replace(PAID, status=status)
    once = now_is(state, now, GRACE)
    assert now_is(once, now, GRACE) == once
    assert now_is(now_is(state, now - DAY, GRACE), now, GRACE) == once or once.status == "expired"


@pytest.mark.parametrize("status", ["canceled", "expired", "paused"])
def test_what_is_over_or_paused_stays(status: Any):
    state = replace(PAID, status=status)
    assert now_is(state, END + 90 * DAY, GRACE) == state
    assert due(state, END) is None


# Days


async def test_a_period_that_nobody_pays_for_goes_its_way_day_by_day(bench: Bench) -> None:
    user, _ = await subscribed(bench)
    told = await live(bench, MIDNIGHT, 45)
    pro = ("pro",)
    assert told == [
        ("12-08", "active", pro),  # from now on with the days of grace
        ("12-09", "7 days", "12-12"),
        ("12-13", "3 days", "12-14"),
        ("12-15", "1 days", "12-15"),
        ("12-16", "past_due", pro),
        ("12-16", "0 days", "12-17"),
        ("12-18", "-2 days", "12-22"),
        ("12-23", "past_due", ()),  # the days of grace are over
        ("12-23", "-7 days", "12-29"),
        ("12-30", "-14 days", "01-05"),
        ("01-06", "-21 days", "01-06"),
        ("01-07", "expired", ()),
    ]
    reminders = [body for name, body in await bench.told() if name == "renewal.due"]
    assert [one["last"] for one in reminders] == [False] * 7 + [True]
    assert {(one["amount"], one["currency"], one["plan"], one["user_id"]) for one in reminders} == {
        ("29", "USD", "pro", str(user))
    }
    assert not await bench.allowed(user)


async def test_access_goes_on_between_the_periods_end_and_the_next_run(bench: Bench) -> None:
    user, _ = await subscribed(bench)
    await live(bench, MIDNIGHT, 15)
    bench.clock.now = END + timedelta(hours=3)
    assert await bench.allowed(user) == ("pro",)
    bench.clock.now = END + GRACE
    assert not await bench.allowed(user)


async def test_running_twice_changes_nothing(bench: Bench) -> None:
    await subscribed(bench)
    for number in range(45):
        bench.clock.now = MIDNIGHT + number * DAY
        await bench.renewals.run(bench.clock.now)
        before = await bench.told()
        versions = await bench.rows("select status, version from subscriptions")
        await bench.renewals.run(bench.clock.now)
        assert await bench.told() == before
        assert await bench.rows("select status, version from subscriptions") == versions


@pytest.mark.parametrize(
    ("away", "told"),
    [
        (13, ["2 days"]),
        (19, ["past_due", "-4 days"]),
        (31, ["past_due", "-16 days"]),
        (60, ["expired"]),
    ],
)
async def test_missed_runs_are_made_up_for_by_one_notice(bench: Bench, away: int, told: list[str]) -> None:
    await subscribed(bench)
    await live(bench, MIDNIGHT, 1)
    found = await live(bench, MIDNIGHT + away * DAY - timedelta(hours=10 if away == 13 else 0), 1)
    assert [what for _, what, _ in found if what != "active"] == told
    assert not await live(bench, bench.clock.now, 1)


async def test_a_payment_ends_the_dunning_and_the_next_period_is_reminded_of_anew(bench: Bench) -> None:
    user, subscription = await subscribed(bench)
    await live(bench, MIDNIGHT, 20)
    await bench.become(user, replace(PAID, period_start=END, period_end=END + 31 * DAY), subscription)
    assert await bench.allowed(user) == ("pro",)
    told = await live(bench, MIDNIGHT + 20 * DAY, 26)
    assert [what for _, what, _ in told] == ["active", "7 days", "3 days", "1 days"]


async def test_who_ends_with_the_period_is_not_reminded_and_is_canceled(bench: Bench) -> None:
    await subscribed(bench, replace(PAID, cancel_at_period_end=True))
    assert await live(bench, MIDNIGHT, 45) == [("12-16", "canceled", ())]


async def test_stripes_subscriptions_are_stripes_business(bench: Bench) -> None:
    user = await bench.user()
    await bench.subscribed(user, END - 30 * DAY)
    assert not await live(bench, MIDNIGHT, 45)


async def test_a_granted_plan_renews_by_hand_as_well(bench: Bench) -> None:
    await subscribed(bench, replace(PAID, provider="manual"))
    assert len(await live(bench, MIDNIGHT, 45)) == 12


async def test_one_that_fails_stops_no_other_and_is_tried_again(bench: Bench) -> None:
    ids = sorted([(await subscribed(bench))[1] for _ in range(3)])
    refuse = f"alter table subscriptions add constraint broken check (id <> '{ids[0]}' or version < 2) not valid"
    async with bench.database.transaction() as tx:
        await tx.execute(text(refuse))
    bench.clock.now = MIDNIGHT + 8 * DAY
    with pytest.raises(SomeRenewalsFailed):
        await bench.renewals.run(bench.clock.now)
    told = [body["reference"] for name, body in await bench.told() if name == "renewal.due"]
    assert told == [f"crypto/{one}" for one in ids[1:]]
    async with bench.database.transaction() as tx:
        await tx.execute(text("alter table subscriptions drop constraint broken"))
    await bench.renewals.run(bench.clock.now)
    assert len([name for name, _ in await bench.told() if name == "renewal.due"]) == 3


async def test_a_service_that_was_away_for_days_runs_once_when_it_is_back(bench: Bench, database_url: str) -> None:
    await subscribed(bench)
    service = build(Environment(SharedSettings(database_url=database_url), bench.clock))
    scheduler: Scheduler = service.scheduler
    bench.clock.now = MIDNIGHT
    await scheduler.turn()
    await scheduler.idle()
    bench.clock.now = END + 3 * DAY
    await scheduler.turn()
    await scheduler.idle()
    runs = [run for run in await scheduler.runs("renewals") if run.trigger == "clock"]
    assert [(run.outcome, run.scheduled_for) for run in runs] == [("done", datetime(2026, 12, 18, tzinfo=UTC))]
    told = [body["days_left"] for name, body in await bench.told() if name == "renewal.due"]
    assert told == [-3]
    await service.db.close()


# Trials and cards


async def test_a_trial_that_ends_soon_is_told_once(bench: Bench) -> None:
    user = await bench.user()
    trial = State("stripe", "sub_1", "pro", "trialing", NOW, NOW + 7 * DAY, NOW + 7 * DAY)
    await bench.become(user, trial)
    before = len(await bench.told())
    for hours in range(0, 24 * 9, 6):
        bench.clock.now = NOW + timedelta(hours=hours)
        await bench.reminders.run(bench.clock.now)
    ((name, body),) = (await bench.told())[before:]
    assert (name, body["reference"], body["ends_at"]) == ("trial.ending", "stripe/sub_1", "2026-11-08T12:00:00Z")


async def test_a_trial_that_was_canceled_is_not_told(bench: Bench) -> None:
    user = await bench.user()
    trial = State("stripe", "sub_1", "pro", "trialing", NOW, NOW + DAY, NOW + DAY, cancel_at_period_end=True)
    await bench.become(user, trial)
    await bench.reminders.run(NOW)
    assert not await bench.told()


async def test_a_card_that_expires_is_told_once_while_it_still_pays(bench: Bench) -> None:
    user, without = await bench.user(), await bench.user("cus_2")
    await bench.subscribed(user)
    async with bench.database.transaction() as tx:
        for owner in (user, without):
            card = {"provider_id": f"pm_{owner}", "brand": "visa", "last4": "4242"}
            await bench.money.note_card(tx, owner, card, date(2027, 1, 1), NOW)
    bench.clock.now = datetime(2026, 12, 1, 23, tzinfo=UTC)
    await bench.reminders.run(bench.clock.now)
    assert not await bench.told()
    for _ in range(3):
        bench.clock.advance(86_400)
        await bench.reminders.run(bench.clock.now)
    ((name, body),) = await bench.told()
    assert (name, body["user_id"], body["expires"]) == ("card.expiring", str(user), "2026-12")
    assert (body["brand"], body["last4"]) == ("visa", "4242")


async def test_a_lapse_tells_what_became_of_a_subscription_while_it_waited_for_its_user(bench: Bench):
    user, subscription = await subscribed(bench)
    bench.clock.now = END + timedelta(minutes=1)

    async def waits() -> bool:
        return bool(await bench.rows("select from pg_locks where locktype = 'advisory' and not granted"))

    async with bench.database.transaction() as tx:
        await bench.store.lock_user(tx, user)
        lapsing = asyncio.create_task(bench.run(bench.subscriptions.lapse))
        await eventually(waits)
        renewed = replace(PAID, period_start=END, period_end=END + 30 * DAY)
        (told,) = await bench.subscriptions.become(tx, user, renewed, subscription)
    assert await lapsing == []
    assert told.entitlements == ("pro",)  # pyright: ignore[reportAttributeAccessIssue]
