"""A life at the stand-in for Stripe, read by the adapter and applied: ledger, notices and access agree with Stripe."""

import random
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from services.payment.adapters.stripe_api import StripeApi
from services.payment.domain.stripe import state_of
from services.payment.service.invariants import Invariants
from shared.contracts.base import Event
from shared.contracts.payment import PaymentDisputed, PaymentFailed, PaymentReceived, PaymentRefunded
from shared.db import Database
from tests.fakes.stripe import FakeStripe
from tests.payment.ledger_bench import GRACE, PRICE, Bench

KINDS = ("invoice", "charge", "refund", "dispute", "payment_method")
WINDOW = timedelta(days=365)


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


@pytest.fixture
async def fake() -> AsyncGenerator[FakeStripe]:
    with FakeStripe() as running:
        yield running
        await running.close()


@pytest.fixture
async def stripe(fake: FakeStripe) -> AsyncGenerator[StripeApi]:
    api = StripeApi(fake.key, base=fake.url)
    yield api
    await api.close()


async def bought(fake: FakeStripe) -> tuple[str, str]:
    """Return the customer and the subscription of somebody who bought the plan with a card that pays."""
    client = fake.client()
    price = fake.price(2900, price_id=PRICE)
    customer = await client.v1.customers.create_async({"email": "a@example.org"})
    wanted: Any = {"mode": "subscription", "customer": customer.id, "success_url": "https://example.org/"}
    session = await client.v1.checkout.sessions.create_async(
        wanted | {"line_items": [{"price": price["id"], "quantity": 1}]}
    )
    assert fake.complete(session.id, fake.card())
    return customer.id, fake.all("subscription")[0]["id"]


async def troubles(fake: FakeStripe, customer: str) -> None:
    """A first payment refunded in part, a renewal that fails and then works, one disputed and won, one refunded."""
    first = fake.all("invoice")[0]["id"]
    fake.refund(fake.charge_of(first)["id"], 500)
    card = (
        fake.get("customer", customer)["invoice_settings"]["default_payment_method"]
        or fake.all("payment_method")[0]["id"]
    )
    fake.behave(card, "declines")
    fake.advance(days=32)
    fake.behave(card, "pays")
    fake.advance(days=4)
    second = fake.all("invoice", status="paid")[-1]["id"]
    dispute = fake.dispute(fake.charge_of(second)["id"])
    fake.decide(dispute["id"], won=True)
    fake.advance(days=31)
    third = fake.all("invoice", status="paid")[-1]["id"]
    assert len({first, second, third}) == 3
    fake.refund(fake.charge_of(third)["id"])


async def applied(bench: Bench, fake: FakeStripe, stripe: StripeApi, chance: random.Random) -> list[Event]:
    """Fetch and apply all that there is, in any order, some of it twice."""
    found = [(kind, one["id"]) for kind in KINDS for one in fake.all(kind)]
    found += chance.choices(found, k=len(found) // 2)
    chance.shuffle(found)
    told: list[Event] = []
    for kind, object_id in found:
        obj = await stripe.fetch(kind, object_id)
        told += await bench.apply(kind, dict(obj) if obj is not None else None, object_id)
    return told


@pytest.mark.parametrize("seed", range(4))
async def test_ledger_notices_and_access_agree_with_stripe_in_whatever_order(
    bench: Bench, fake: FakeStripe, stripe: StripeApi, seed: int
) -> None:
    customer, subscription = await bought(fake)
    user = await bench.user(customer)
    await troubles(fake, customer)
    bench.clock.now = datetime.fromtimestamp(fake.now, UTC)
    told = await applied(bench, fake, stripe, random.Random(seed))

    moved = fake.all("balance_transaction")
    balances = await bench.balances()
    assert balances["assets:stripe", "USD"] == sum(one["net"] for one in moved)
    assert balances["income:subscriptions", "USD"] == -3 * 2900
    assert balances["income:refunds", "USD"] == 500 + 2900
    assert balances["expenses:disputes", "USD"] == 0
    assert sum(balances.values()) == 0
    counts = {kind: sum(isinstance(event, kind) for event in told) for kind in NOTICES}
    assert counts == NOTICES

    assert subscription == fake.all("subscription")[0]["id"]
    found = await stripe.fetch("subscription", subscription)
    assert found is not None
    state = state_of(found, bench.plans, GRACE, bench.clock.now)
    assert state is not None
    await bench.become(user, state)
    assert not await bench.allowed(user), "the period that is now was refunded in full"

    invariants = Invariants(
        bench.ledger_store,
        bench.store,
        bench.ledger,
        bench.subscriptions,
        bench.door,
        movements=partial(stripe.list, "balance_transaction"),
        want=None,
        clock=bench.clock,
    )
    assert set((await invariants.is_stripes(WINDOW)).values()) == {0}
    assert len(await bench.rows("select key from ledger_entries")) == len(moved)


NOTICES = {PaymentReceived: 3, PaymentFailed: 1, PaymentRefunded: 2, PaymentDisputed: 2}


async def test_a_ledger_that_heard_nothing_is_made_whole_by_the_comparison(
    bench: Bench, fake: FakeStripe, stripe: StripeApi
) -> None:
    customer, _ = await bought(fake)
    await bench.user(customer)
    await troubles(fake, customer)
    fake.advance(days=1)
    bench.clock.now = datetime.fromtimestamp(fake.now, UTC)
    wanted: list[tuple[str, str]] = []

    async def want(_: Any, objects: Any) -> None:
        wanted.extend(objects)

    invariants = Invariants(
        bench.ledger_store,
        bench.store,
        bench.ledger,
        bench.subscriptions,
        bench.door,
        movements=partial(stripe.list, "balance_transaction"),
        want=want,
        clock=bench.clock,
    )
    moved = fake.all("balance_transaction")
    assert (await invariants.is_stripes(WINDOW))["missing"] == len(moved)
    assert {object_id for _, object_id in wanted} == {one["source"] for one in moved}
    assert not await bench.balances(), "what they came from may still be on its way"
    assert (await invariants.is_stripes(WINDOW))["missing"] == len(moved)
    assert (await bench.balances())["assets:stripe", "USD"] == sum(one["net"] for one in moved)
    assert set((await invariants.is_stripes(WINDOW)).values()) == {0}
