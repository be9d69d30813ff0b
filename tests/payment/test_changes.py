"""Cancelling, resuming and changing a plan, at Stripe and here, and what the routes refuse."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.payment.domain.plans import Plan
from services.payment.domain.proration import moved_end
from services.payment.domain.subscriptions import State
from services.payment.main import build
from services.payment.ports import StripeRefused
from services.payment.service.audit import Actor
from services.payment.service.calls import ChangePending, Pending
from services.payment.service.changes import NothingToResume, NotNow, SamePlan
from services.payment.service.checkout import NotOffered
from shared.db import Database
from shared.errors import Invalid, NotFound
from shared.identity import HEADER, Identity, Signer
from shared.service import Environment
from shared.settings import SharedSettings
from tests.conftest import ManualClock, eventually
from tests.fakes.stripe import Fault
from tests.payment.buying import Shop

# At Stripe


async def test_a_cancellation_ends_with_the_period_and_is_taken_back(shop: Shop) -> None:
    user_id, subscription = await shop.subscriber()
    changed = await shop.changes.cancel(Actor(user_id), now=False)
    assert not changed.applied
    assert shop.fake.get("subscription", subscription)["cancel_at_period_end"] is True
    assert ("subscription", subscription) in shop.marked
    await shop.follow(user_id, subscription)
    await shop.changes.resume(Actor(user_id))
    assert shop.fake.get("subscription", subscription)["cancel_at_period_end"] is False
    with pytest.raises(NothingToResume):
        await shop.changes.resume(Actor(user_id))
    keys = [row["key"] for row in await shop.ordered("subscription.update")]
    lane = f"openbell/subscription.update/subscription/{subscription}"
    assert keys == [f"{lane}/1", f"{lane}/2"]
    actions = [one["action"] for one in await shop.audited()]
    assert [one for one in actions if one.endswith(".subscription")] == ["cancel.subscription", "resume.subscription"]


async def test_a_cancellation_at_once_is_final(shop: Shop) -> None:
    user_id, subscription = await shop.subscriber()
    await shop.changes.cancel(Actor(user_id), now=True)
    assert shop.fake.get("subscription", subscription)["status"] == "canceled"
    with pytest.raises(StripeRefused):  # our state has not followed yet; Stripe says no
        await shop.changes.cancel(Actor(user_id), now=True)
    assert shop.marked.count(("subscription", subscription)) >= 2


async def test_a_cancellation_that_was_never_answered_is_looked_up(shop: Shop) -> None:
    user_id, subscription = await shop.subscriber()
    shop.fake.fail("DELETE", f"/v1/subscriptions/{subscription}", Fault(0, effect=True))
    asked = asyncio.create_task(shop.changes.cancel(Actor(user_id), now=True))
    await eventually(lambda: shop.uncertain("subscription.cancel"))
    shop.pass_time(5)
    await asked
    assert len(shop.sent("DELETE", f"subscriptions/{subscription}")) == 1


async def test_a_change_that_was_never_answered_is_looked_up_and_one_that_never_came_is_repeated(shop: Shop) -> None:
    user_id, subscription = await shop.subscriber()
    path = f"subscriptions/{subscription}"
    for fault, sent in ((Fault(0, effect=True), 1), (Fault(500, effect=True), 2)):
        shop.fake.fail("POST", f"/v1/{path}", fault)
        cancelling = not shop.fake.get("subscription", subscription)["cancel_at_period_end"]
        change = shop.changes.cancel(Actor(user_id), now=False) if cancelling else shop.changes.resume(Actor(user_id))
        asked = asyncio.create_task(change)
        await eventually(lambda: shop.uncertain("subscription.update"))
        shop.pass_time(5)
        await asked
        assert shop.fake.get("subscription", subscription)["cancel_at_period_end"] is cancelling
        assert len(shop.sent("POST", path)) == sent


async def test_another_change_waits_until_the_first_is_known(shop: Shop) -> None:
    user_id, subscription = await shop.subscriber()
    shop.fake.fail("POST", f"/v1/subscriptions/{subscription}", Fault(0, effect=True))
    first = asyncio.create_task(shop.changes.cancel(Actor(user_id), now=False))
    await eventually(lambda: shop.uncertain("subscription.update"))
    same = asyncio.create_task(shop.changes.cancel(Actor(user_id), now=False))
    with pytest.raises(ChangePending):
        await shop.changes.cancel(Actor(user_id), now=True)
    shop.pass_time(5)
    await asyncio.gather(first, same)
    assert len(await shop.ordered("subscription.update")) == 1


async def test_a_change_of_plan_costs_what_its_preview_said(shop: Shop) -> None:
    user_id, subscription = await shop.subscriber("max")
    shop.pass_time(10 * 86_400)
    preview = await shop.changes.preview(Actor(user_id), "pro", None)
    assert (preview.currency, preview.due_now_minor) == ("USD", 0)
    assert preview.proration_minor < 0
    assert shop.fake.get("subscription", subscription)["items"]["data"][0]["price"]["unit_amount"] == 5900
    shop.pass_time(600)
    await shop.changes.change_plan(Actor(user_id), "pro", preview.at)
    assert shop.fake.get("subscription", subscription)["items"]["data"][0]["price"]["unit_amount"] == 2900
    asked = shop.sent("POST", f"subscriptions/{subscription}")[-1].params
    assert asked["proration_date"] == str(int(preview.at.timestamp()))
    await shop.follow(user_id, subscription)
    with pytest.raises(SamePlan):
        await shop.changes.change_plan(Actor(user_id), "pro", None)


async def test_what_cannot_be_changed_is_refused(shop: Shop) -> None:
    user_id, _ = await shop.subscriber("max")
    actor = Actor(user_id)
    for change in (shop.changes.change_plan, shop.changes.preview):
        with pytest.raises(NotFound):
            await change(actor, "gold", None)
        with pytest.raises(NotOffered):
            await change(actor, "paper", None)
        for at in (timedelta(seconds=1), timedelta(hours=-2)):
            with pytest.raises(Invalid):
                await change(actor, "pro", shop.clock() + at)
        with pytest.raises(NotFound):
            await change(Actor(uuid4()), "pro", None)
    with pytest.raises(NotFound):
        await shop.changes.cancel(Actor(uuid4()), now=True)


async def test_while_stripe_is_away_a_wish_is_kept_for_a_quarter_of_an_hour(
    shop: Shop, open_database: Callable[[str], Database]
) -> None:
    user_id, subscription = await shop.subscriber()
    hasty = Shop(open_database("payment"), shop.fake, shop.clock, wait_s=0.2)
    shop.fake.fail("POST", f"/v1/subscriptions/{subscription}", *[Fault(429)] * 50)
    with pytest.raises(Pending):
        await hasty.changes.cancel(Actor(user_id), now=False)
    await hasty.api.close()
    shop.pass_time(16 * 60)
    await shop.idle()
    (call,) = await shop.ordered("subscription.update")
    assert (call["status"], call["uncertain"]) == ("failed", False)
    assert shop.fake.get("subscription", subscription)["cancel_at_period_end"] is False


# Here


async def test_what_nobody_bills_is_changed_here(shop: Shop) -> None:
    user_id, mine = uuid4(), uuid4()
    end = shop.clock() + timedelta(days=30)
    await shop.have(user_id, State("crypto", None, "pro", "active", period_end=end), mine)
    ended = await shop.changes.cancel(Actor(user_id), now=False)
    assert ended.applied
    assert ended.subscription["cancel_at_period_end"] is True
    assert ended.subscription["entitled_until"] == end
    assert (await shop.changes.resume(Actor(user_id))).subscription["cancel_at_period_end"] is False
    with pytest.raises(NothingToResume):
        await shop.changes.resume(Actor(user_id))
    preview = await shop.changes.preview(Actor(user_id), "paper", None)
    assert preview.period_end == shop.clock() + timedelta(days=15)
    changed = await shop.changes.change_plan(Actor(user_id), "paper", None)
    assert changed.subscription["plan"] == "paper"
    assert changed.subscription["current_period_end"] == preview.period_end
    gone = await shop.changes.cancel(Actor(user_id), now=True)
    assert (gone.subscription["status"], gone.subscription["entitlements"]) == ("canceled", ())
    assert shop.fake.requests == []
    told = await shop.rows("select key from outbox where topic = 'payment.subscriptions'")
    assert len(told) == 5


async def test_a_change_of_plan_moves_the_days_of_grace_with_the_period(shop: Shop) -> None:
    user_id, grace = uuid4(), timedelta(days=7)
    end = shop.clock() + timedelta(days=30)
    state = State("crypto", None, "paper", "active", period_end=end, grace_until=end + grace)
    await shop.have(user_id, state, uuid4())
    changed = (await shop.changes.change_plan(Actor(user_id), "pro", None)).subscription
    assert changed["current_period_end"] == shop.clock() + timedelta(days=60)
    assert changed["entitled_until"] == changed["grace_until"] == changed["current_period_end"] + grace


async def test_a_pause_ends_within_the_period_and_what_waits_for_money_is_not_changed(shop: Shop) -> None:
    paused, unpaid, for_ever = uuid4(), uuid4(), uuid4()
    end = shop.clock() + timedelta(days=3)
    await shop.have(paused, State("manual", None, "pro", "paused", period_end=end), uuid4())
    assert (await shop.changes.resume(Actor(paused))).subscription["status"] == "active"
    await shop.have(unpaid, State("crypto", None, "pro", "past_due", period_end=end, grace_until=end), uuid4())
    await shop.have(for_ever, State("manual", None, "pro", "active"), uuid4())
    for user_id in (unpaid, for_ever):
        with pytest.raises(NotNow):
            await shop.changes.change_plan(Actor(user_id), "max", None)
    assert (await shop.changes.cancel(Actor(unpaid), now=False)).subscription["status"] == "canceled"


@given(
    st.integers(0, 10**9),
    st.sampled_from(["1", "29", "59", "99999.99"]),
    st.sampled_from(["1", "29", "0.01"]),
    st.sampled_from(["month", "year"]),
    st.sampled_from(["month", "year"]),
)
def test_a_change_here_and_back_gives_nobody_time(left: int, old: str, new: str, before: Any, after: Any) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    plans = [
        Plan(name="a", title="A", price_usd=Decimal(price), period=period, entitlements=("a",))
        for price, period in ((old, before), (new, after))
    ]
    end = now + timedelta(microseconds=left)
    there = moved_end(now, end, plans[0], plans[1])
    back = moved_end(now, there, plans[1], plans[0])
    assert now <= there
    assert now <= back <= end
    assert moved_end(now, now - timedelta(days=1), plans[0], plans[1]) == now


# The routes


class Client:
    """The service as main builds it, over HTTP without Kafka."""

    def __init__(self, http: httpx.AsyncClient, signer: Signer) -> None:
        self._http, self._signer = http, signer

    async def __call__(self, method: str, path: str, user: UUID, **more: Any) -> httpx.Response:
        token = self._signer.sign(Identity(user, "user"), audience="payment", request_id="r1")
        return await self._http.request(method, path, headers={HEADER: token}, **more)


@pytest.fixture
async def client(database_url: str) -> AsyncIterator[Client]:
    settings = SharedSettings(database_url=database_url)
    clock = ManualClock(datetime(2026, 3, 1, tzinfo=UTC))
    service = build(Environment(settings, clock))
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://payment") as http:
        yield Client(http, Signer(settings.identity_secret.get_secret_value(), clock))
    await service.db.close()


async def test_without_stripe_nothing_is_sold_by_card_and_the_refusal_is_audited(
    client: Client, open_database: Callable[[str], Database]
) -> None:
    user = uuid4()
    asked = {"/pay/checkout": {"plan": "pro"}, "/pay/portal": {}}
    for path, body in asked.items():
        answer = await client("POST", path, user, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "NOT_OFFERED"), path
    assert (await client("GET", "/pay/invoices", user)).json() == {"invoices": [], "next": None}
    async with open_database("payment").read() as tx:
        rows = await tx.connection.fetch("select value from outbox where topic = 'api.audit' order by id")
    told = [httpx.Response(200, content=row["value"]).json() for row in rows]
    assert [(one["action"], one["details"]["code"]) for one in told] == [
        ("refuse.checkout", "NOT_OFFERED"),
        ("refuse.portal", "NOT_OFFERED"),
    ]
    assert {one["actor"] for one in told} == {str(user)}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/pay/checkout", {"plan": "gold"}, 404),
        ("POST", "/pay/checkout", {"plan": ""}, 422),
        ("POST", "/pay/checkout", {}, 422),
        ("POST", "/pay/checkout", {"plan": "pro", "amount": -5}, 422),
        ("POST", "/pay/checkout", {"plan": "pro", "coupon": "50% off; --"}, 422),
        ("POST", "/pay/portal", {"customer": "cus_x/../../y"}, 422),
        ("GET", "/pay/invoices?limit=0", None, 422),
        ("GET", "/pay/invoices?limit=101", None, 422),
        ("GET", "/pay/invoices?before=../customers", None, 422),
        ("GET", "/pay/invoices?before=in_abc%0A", None, 422),
        ("POST", "/pay/cancel", None, 404),
        ("POST", "/pay/resume", None, 404),
        ("POST", "/pay/change-plan", {"plan": "pro"}, 404),
        ("POST", "/pay/change-plan?preview=true", {"plan": "pro", "at": "yesterday"}, 422),
        ("GET", "/pay/subscription", None, 404),
    ],
)
async def test_bad_input_is_refused_with_a_code(
    client: Client, method: str, path: str, body: dict[str, Any] | None, status: int
) -> None:
    answer = await client(method, path, uuid4(), **({} if body is None else {"json": body}))
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["code"]
