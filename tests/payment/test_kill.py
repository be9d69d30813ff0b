"""SIGKILL of the payment process anywhere between a webhook and what it entitles to: it converges, nothing twice."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from uuid import UUID

import pytest

from deploy.local.kafka import RunningKafka
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.fakes.stripe import Fault
from tests.payment.killing import Killable, killable_payment

STRIPE = "asking Stripe"
POINTS = {
    "before the webhook is kept": "before insert on payment.webhooks for each row",
    "after the webhook was sent on, before that is noted": "before delete on payment.outbox for each statement",
    "before the hint is noted": "before insert on payment.refreshes for each row",
    "before the fetch": "before update on payment.refreshes for each row when (new.status = 'started')",
    STRIPE: "",
    "before what Stripe said is kept": "before insert on payment.stripe_objects for each row",
    "before the subscription is": "before insert on payment.subscriptions for each row",
    "before it is told": "before insert on payment.outbox for each row when (new.topic = 'payment.subscriptions')",
    "before it is settled": "before update on payment.refreshes for each row when (new.status = 'done')",
}


@pytest.fixture
async def killable(
    settings: SharedSettings, database_url: str, clean_kafka: RunningKafka, tmp_path: Path
) -> AsyncGenerator[Killable]:
    del clean_kafka
    async with killable_payment(settings, database_url, tmp_path) as killable:
        yield killable


@pytest.mark.apache  # each life is a member that has to be noticed dead
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # requests that a kill cut in two
@pytest.mark.timeout(900)
async def test_a_kill_anywhere_between_webhook_and_entitlement_loses_and_doubles_nothing(killable: Killable) -> None:
    users: list[UUID] = []
    for point, trigger in POINTS.items():
        life, webhooks = await killable.subscribes()
        users.append(life.user_id)
        if point == STRIPE:
            killable.fake.fail("GET", "/v1/subscriptions/.*", Fault(0))
        else:
            await killable.close_gate(trigger)
        posting = asyncio.create_task(killable.post(webhooks))
        await eventually(killable.asking if point == STRIPE else killable.stuck, 120)
        await killable.process.kill()
        await posting
        if point != STRIPE:
            await killable.open_gate(trigger)
        late = "update payment.refreshes set lease_until = now() - interval '1 second' where lease_until is not null"
        await killable.admin.execute(late)
        await killable.process.start()
        await killable.process.ready()
        await killable.post(webhooks)

        async def entitled(user_id: UUID = life.user_id) -> bool:
            found = "select told -> 'entitlements' = '[\"pro\"]' as pro from payment.subscriptions where user_id = $1"
            return [row["pro"] for row in await killable.admin.fetch(found, user_id)] == [True]

        async def settled() -> bool:
            left = "select 1 from payment.refreshes where status in ('pending', 'claimed', 'started')"
            sent = "select 1 from payment.outbox"
            return not await killable.admin.fetch(left) and not await killable.admin.fetch(sent)

        await eventually(entitled, 120)
        await eventually(settled, 120)

    rows = await killable.admin.fetch("select user_id, status, version from payment.subscriptions")
    assert Counter(row["user_id"] for row in rows) == Counter(users)
    assert {(row["status"], row["version"]) for row in rows} == {("active", 1)}
    assert await killable.admin.fetch("select 1 from payment.failed_jobs") == []
    changes = await killable.told("payment.subscriptions")
    assert len({event_id for event_id, _ in changes}) == len(POINTS)
    assert len({body for _, body in changes}) == len(POINTS)
    kept = await killable.admin.fetch("select event_id from payment.webhooks")
    assert len(kept) == len({row["event_id"] for row in kept})
