"""The stand-in for Stripe answers requests as Stripe says that it does: keys, faults, pages, signatures, refusals."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import stripe

from tests.fakes.stripe import FakeStripe, Fault


@pytest.fixture
async def fake() -> AsyncGenerator[FakeStripe]:
    with FakeStripe() as running:
        yield running
        await running.close()


async def test_a_key_answers_the_same_again_for_a_day_and_refuses_other_parameters(fake: FakeStripe) -> None:
    customers = fake.client().v1.customers
    first = await customers.create_async({"name": "A"}, {"idempotency_key": "k"})
    again: Any = await customers.create_async({"name": "A"}, {"idempotency_key": "k"})
    assert again.id == first.id
    assert again.last_response.headers["idempotent-replayed"] == "true"
    with pytest.raises(stripe.IdempotencyError):
        await customers.create_async({"name": "B"}, {"idempotency_key": "k"})
    fake.advance(days=1)
    assert (await customers.create_async({"name": "A"}, {"idempotency_key": "k"})).id != first.id


async def test_a_500_is_kept_as_the_answer_of_its_key(fake: FakeStripe) -> None:
    customers = fake.client().v1.customers
    fake.fail("POST", "/v1/customers", Fault(500, effect=True))
    for _ in range(2):
        with pytest.raises(stripe.APIError):
            await customers.create_async({"name": "A"}, {"idempotency_key": "k"})
    assert len(fake.all("customer")) == 1


async def test_a_request_that_took_effect_and_was_never_answered_is_answered_when_repeated(fake: FakeStripe) -> None:
    fake.fail("POST", "/v1/customers", Fault(0, effect=True))
    customers = fake.client(timeout_s=0.2).v1.customers
    with pytest.raises(stripe.APIConnectionError):
        await customers.create_async({"name": "A"}, {"idempotency_key": "k"})
    (made,) = fake.all("customer")
    assert (await customers.create_async({"name": "A"}, {"idempotency_key": "k"})).id == made["id"]
    fake.fail("POST", "/v1/customers", Fault(0))
    with pytest.raises(stripe.APIConnectionError):
        await customers.create_async({"name": "B"})
    assert len(fake.all("customer")) == 1


async def test_too_many_requests_are_repeated_only_when_stripe_says_so(fake: FakeStripe) -> None:
    customers = fake.client(retries=2).v1.customers
    fake.fail("POST", "/v1/customers", Fault(429, retry=True))
    await customers.create_async({"name": "A"})
    fake.fail("POST", "/v1/customers", Fault(429))
    with pytest.raises(stripe.RateLimitError):
        await customers.create_async({"name": "B"})
    assert [request.status for request in fake.requests] == [429, 200, 429]


async def test_lists_are_paged_both_ways(fake: FakeStripe) -> None:
    customers = fake.client().v1.customers
    made = [(await customers.create_async({"name": str(n)})).id for n in range(7)]
    first = await customers.list_async({"limit": 3})
    assert [one.id for one in first.data] == made[:3:-1]
    assert first.has_more
    assert [one.id async for one in first.auto_paging_iter()] == made[::-1]
    newer = await customers.list_async({"limit": 2, "ending_before": made[3]})
    assert [one.id for one in newer.data] == [made[5], made[4]]
    assert newer.has_more
    assert [one.id async for one in newer.auto_paging_iter()] == made[4:]


async def test_webhooks_are_signed_as_stripes_client_checks_them(fake: FakeStripe) -> None:
    await fake.client().v1.customers.create_async({"name": "A"})
    body, headers = fake.signed(fake.events[-1])
    event = stripe.Webhook.construct_event(body.decode(), headers["stripe-signature"], fake.webhook_secret)
    assert event.type == "customer.created"
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(body.decode() + " ", headers["stripe-signature"], fake.webhook_secret)


async def test_search_finds_a_customer_only_after_a_while(fake: FakeStripe) -> None:
    customers = fake.client().v1.customers
    made = await customers.create_async({"metadata": {"user_id": "u1"}})
    query: Any = {"query": "metadata['user_id']:'u1'"}
    assert (await customers.search_async(query)).data == []
    fake.advance(seconds=60)
    assert [one.id for one in (await customers.search_async(query)).data] == [made.id]


async def test_the_client_without_a_socket_sees_the_same_account(fake: FakeStripe) -> None:
    made = await fake.client().v1.customers.create_async({"name": "A"})
    direct = fake.direct()
    found = await asyncio.gather(*(direct.v1.customers.retrieve_async(made.id) for _ in range(20)))
    assert {one.name for one in found} == {"A"}
