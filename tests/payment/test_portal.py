"""Stripe's portal and the list of invoices show each caller what is theirs."""

from typing import Any
from uuid import uuid4

import pytest

from services.payment.domain.returns import ReturnNotAllowed
from services.payment.service.audit import Actor
from services.payment.service.checkout import NoCustomer
from shared.errors import Forbidden, NotFound
from tests.payment.buying import OURS, Shop
from tests.payment.inprocess import InProcess, asked, signed_up, subscriber


async def test_the_portal_is_the_callers_own(shop: Shop) -> None:
    ada, bob, carl = await shop.buyer(), await shop.buyer(), uuid4()
    own, other = await shop.customers.known(ada), await shop.customers.known(bob)
    assert await shop.checkouts.portal(Actor(ada), None, None)
    assert await shop.checkouts.portal(Actor(ada), f"{OURS}/back", own)
    asked = [request.params["customer"] for request in shop.sent("POST", "billing_portal/sessions")]
    assert asked == [own, own]
    with pytest.raises(Forbidden):
        await shop.checkouts.portal(Actor(ada), None, other)
    with pytest.raises(Forbidden):
        await shop.checkouts.portal(Actor(carl), None, other)
    with pytest.raises(NoCustomer):
        await shop.checkouts.portal(Actor(carl), None, None)
    with pytest.raises(ReturnNotAllowed):
        await shop.checkouts.portal(Actor(ada), "https://evil.example/", None)


async def test_invoices_come_in_pages_and_are_the_callers_own(shop: Shop) -> None:
    ada, _ = await shop.subscriber()
    bob, _ = await shop.subscriber()
    for _ in range(2):
        shop.pass_time(32 * 86_400)
    all_of_ada = (await shop.checkouts.invoices(ada, 100, None)).invoices
    assert len(all_of_ada) == 3
    assert {one["customer"] for one in all_of_ada} == {await shop.customers.known(ada)}
    first = await shop.checkouts.invoices(ada, 2, None)
    assert first.next is not None
    second = await shop.checkouts.invoices(ada, 2, first.next)
    assert [one["id"] for one in (*first.invoices, *second.invoices)] == [one["id"] for one in all_of_ada]
    assert second.next is None
    with pytest.raises(NotFound):
        await shop.checkouts.invoices(bob, 2, first.next)
    assert (await shop.checkouts.invoices(uuid4(), 2, None)).invoices == ()


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("portal", {"customer": "of somebody else"}, 403, "FORBIDDEN"),
        ("portal", {"return_url": "https://evil.example/"}, 422, "RETURN_NOT_ALLOWED"),
        ("checkout", {"plan": "gold"}, 404, "NOT_FOUND"),
        ("checkout", {"plan": "max"}, 409, "ALREADY_SUBSCRIBED"),
        ("change-plan", {"plan": "gold"}, 404, "NOT_FOUND"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_what_a_subscriber_may_not_do_is_refused_with_a_code_and_audited_once(
    running: InProcess, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    ada, bob = await subscriber(running), await signed_up(running)
    (other,) = (one["id"] for one in running.fake.all("customer") if one["metadata"]["user_id"] == str(bob))
    wish = body | ({"customer": other} if "customer" in body else {})
    before = len(running.fake.all("subscription")), len(running.fake.all("checkout.session"))
    answer = await asked(running, ada, path, wish, status)
    assert answer["error"]["code"] == code
    await running.settle()
    told = [about for _, about in running.told if str(about.get("action")).startswith("refuse.")]
    assert [(one["action"], one["actor"], one["details"]["code"]) for one in told] == [
        (f"refuse.{path}", str(ada), code)
    ]
    assert (len(running.fake.all("subscription")), len(running.fake.all("checkout.session"))) == before
