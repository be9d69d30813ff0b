"""SIGKILL of the payment process around its own writes at Stripe: each is looked up before it is repeated, none twice.

OPENBELL_PAYMENT_KILLS says how often it is killed; 16 meet each write at each point.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from deploy.local.kafka import RunningKafka
from shared.clock import utc_now
from shared.identity import HEADER, Identity, Signer
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.fakes.stripe import Fault
from tests.payment.killing import Killable, killable_payment
from tests.payment.lives import Life

KILLS = int(os.environ.get("OPENBELL_PAYMENT_KILLS", "4"))


@dataclass(frozen=True)
class Write:
    """A write of ours: what asks for it, and what it is at Stripe. A double's refund is asked for by a webhook."""

    kind: str
    asked: str | None
    plan: str | None
    method: str
    path: str


WRITES = (
    Write("checkout.create", "/pay/checkout", "pro", "POST", "/v1/checkout/sessions"),
    Write("subscription.update", "/pay/cancel", None, "POST", "/v1/subscriptions/{sub}"),
    Write("subscription.update", "/pay/change-plan", "max", "POST", "/v1/subscriptions/{sub}"),
    Write("refund.create", None, None, "POST", "/v1/refunds"),
)
TRIGGER = "before update on payment.stripe_calls for each row when (new.kind = '{kind}' and new.status = '{status}')"


@dataclass(frozen=True)
class Point:
    """Where the process dies: where the database holds it, or Stripe; and how often the write is sent in all."""

    held: str | Fault
    sent: int


POINTS = {
    "before it is sent": Point("started", 1),
    "carried out, and not answered": Point(Fault(0, effect=True), 1),
    "failed inside Stripe, and not answered": Point(Fault(0, effect=False), 3),
    "answered, and not recorded": Point("done", 1),
}
"""What failed there is looked up, repeated, answered with the failure that Stripe keeps, and sent under another key."""


@dataclass
class Buyer:
    """Who asks for a write, and what had happened before."""

    life: Life
    write: Write
    requests: int
    events: int

    @property
    def path(self) -> str:
        return self.write.path.format(sub=self.life.sub["id"] if "{sub}" in self.write.path else "")

    @property
    def sent(self) -> int:
        """How often the write has come to Stripe since."""
        came = self.life.fake.requests[self.requests :]
        return len([one for one in came if (one.method, one.path) == (self.write.method, self.path)])

    @property
    def unanswered(self) -> bool:
        return any(one.status == 0 for one in self.life.fake.requests[self.requests :])

    @property
    def effects(self) -> Counter[str]:
        """What has happened at Stripe to this customer since: sessions, refunds, and all events."""
        fake, customer = self.life.fake, self.life.customer
        happened = Counter(
            event["type"]
            for event in fake.events[self.events :]
            if customer in {event["data"]["object"].get("customer"), event["data"]["object"].get("id")}
        )
        happened["sessions"] = len(fake.all("checkout.session", customer=customer))
        happened["refunds"] = len(fake.all("refund", customer=customer))
        return happened


@pytest.fixture
async def killable(
    settings: SharedSettings, database_url: str, clean_kafka: RunningKafka, tmp_path: Path
) -> AsyncGenerator[Killable]:
    del clean_kafka
    async with killable_payment(settings, database_url, tmp_path) as killable:
        yield killable


async def a_buyer(killable: Killable, write: Write) -> Buyer:
    """Make a customer whom we know, with the subscription that the write is about."""
    fake, user_id = killable.fake, uuid4()
    life = Life(fake, user_id, "")
    life.begin()
    known = "insert into payment.customers values ($1, 'a@example.com', $2, now())"
    await killable.admin.execute(known, user_id, life.customer)
    if write.kind != "checkout.create":
        life.buy()
        await killable.admin.execute(
            """insert into payment.subscriptions (id, user_id, provider, provider_id, plan, status,
                   current_period_start, current_period_end, created_at, updated_at)
               values ($1, $2, 'stripe', $3, 'pro', 'active', now(), now() + interval '30 days', now(), now())""",
            uuid4(),
            user_id,
            life.sub["id"],
        )
    if write.kind == "refund.create":
        fake.advance(seconds=1)
        life.buy()
    return Buyer(life, write, len(fake.requests), len(fake.events))


async def ask(killable: Killable, buyer: Buyer) -> httpx.Response | None:
    """Ask as the gateway does, or tell of the second subscription as Stripe does; None where nobody answered."""
    if buyer.write.asked is None:
        sub = buyer.life.sub["id"]
        told = [event for event in killable.fake.events if event["data"]["object"].get("id") == sub]
        await killable.post(told)
        return None
    body: dict[str, Any] = {"json": {"plan": buyer.write.plan}} if buyer.write.plan else {}
    signer = Signer(killable.settings.identity_secret.get_secret_value(), utc_now)
    token = signer.sign(Identity(buyer.life.user_id, "user"), audience="payment", request_id="r1")
    with contextlib.suppress(httpx.HTTPError):
        return await killable.http.post(buyer.write.asked, headers={HEADER: token}, **body)
    return None


async def settled(killable: Killable, buyer: Buyer) -> bool:
    """Whether the write was carried out, and nothing of its user's is on its way."""
    rows = await killable.admin.fetch(
        "select kind, status from payment.stripe_calls where user_id = $1", buyer.life.user_id
    )
    return {"done"} == {row["status"] for row in rows} and buyer.write.kind in {row["kind"] for row in rows}


async def killed_at(killable: Killable, buyer: Buyer, point: Point) -> None:
    """Let the process die where the point says, and begin anew."""
    trigger = TRIGGER.format(kind=buyer.write.kind, status=point.held)
    if isinstance(point.held, Fault):
        killable.fake.fail(buyer.write.method, buyer.path, point.held)
    else:
        await killable.close_gate(trigger)
    asking = asyncio.create_task(ask(killable, buyer))

    async def there() -> bool:
        return buyer.unanswered if isinstance(point.held, Fault) else await killable.stuck()

    await eventually(there, 60)
    await killable.process.kill()
    await asking
    if not isinstance(point.held, Fault):
        await killable.open_gate(trigger)
    await killable.admin.execute(
        "update payment.stripe_calls set lease_until = now() - interval '1 second' where lease_until is not null"
    )
    await killable.process.start()
    await killable.process.ready()


@pytest.mark.apache  # each life is a member that has to be noticed dead
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # requests that a kill cut in two
@pytest.mark.timeout(300 + 60 * KILLS)
async def test_a_write_at_stripe_that_a_kill_interrupts_is_looked_up_and_takes_effect_once(killable: Killable) -> None:
    orderly: dict[Write, Counter[str]] = {}
    for write in WRITES:
        buyer = await a_buyer(killable, write)
        await ask(killable, buyer)
        await eventually(lambda buyer=buyer: settled(killable, buyer), 60)
        assert buyer.sent == 1
        orderly[write] = buyer.effects
        assert sum(orderly[write].values()) > 0
    for number in range(KILLS):
        write = WRITES[number % len(WRITES)]
        name = list(POINTS)[(number + number // len(WRITES)) % len(POINTS)]
        point, about = POINTS[name], f"kill {number}: {write.asked or write.kind}, {name}"
        buyer = await a_buyer(killable, write)
        await killed_at(killable, buyer, point)
        await eventually(lambda buyer=buyer: settled(killable, buyer), 120)
        assert buyer.effects == orderly[write], about
        assert buyer.sent == point.sent, about
        if write.kind == "checkout.create":
            again = await ask(killable, buyer)
            assert again is not None, about
            (session,) = killable.fake.all("checkout.session", customer=buyer.life.customer)
            assert again.json()["id"] == session["id"], about
    assert await killable.admin.fetch("select 1 from payment.stripe_calls where status <> 'done'") == []
