"""A checkout sells one subscription, to one user, once."""

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from services.api.settings import ApiSettings
from services.payment.domain.subscriptions import State
from services.payment.service.calls import WAIT_S, ChangePending, Pending
from services.payment.service.checkout import CouponInvalid, NotOffered
from services.payment.service.doubles import UNRESOLVED
from services.payment.service.subscriptions import AlreadySubscribed
from shared.db import Database
from shared.errors import NotFound
from tests.conftest import eventually
from tests.fakes.stripe import Fault
from tests.payment.buying import OURS, Shop


async def test_a_checkout_sells_the_plan_to_the_user_with_its_trial(shop: Shop) -> None:
    user_id = await shop.buyer()
    session = await shop.begin(user_id, "pro", success_url=f"{OURS}/thanks?s={{CHECKOUT_SESSION_ID}}")
    said = shop.fake.get("checkout.session", session.id)
    assert session.url == said["url"]
    assert said["customer"] == await shop.customers.known(user_id)
    assert (said["client_reference_id"], said["metadata"]["plan"]) == (str(user_id), "pro")
    assert said["success_url"] == f"{OURS}/thanks?s={{CHECKOUT_SESSION_ID}}"
    assert said["cancel_url"] == f"{OURS}/account"
    assert session.expires_at == shop.clock() + timedelta(hours=1)
    assert shop.fake.complete(session.id)
    (subscription,) = shop.fake.all("subscription")
    assert subscription["status"] == "trialing"
    assert subscription["metadata"]["user_id"] == str(user_id)
    assert ("checkout.session", session.id) in shop.marked


async def test_a_trial_is_for_people_who_never_had_a_subscription(shop: Shop) -> None:
    user_id = await shop.buyer()
    crypto = State("crypto", None, "pro", "active", period_end=shop.clock() + timedelta(days=30))
    before = uuid4()
    await shop.have(user_id, crypto, before)
    await shop.have(user_id, State("crypto", None, "pro", "canceled"), before)
    session = await shop.begin(user_id, "pro")
    assert shop.fake.complete(session.id)
    (subscription,) = shop.fake.all("subscription")
    assert subscription["status"] == "active"


async def test_a_trial_that_was_cancelled_before_we_heard_of_it_was_the_only_one(shop: Shop) -> None:
    user_id = await shop.buyer()
    first = await shop.begin(user_id, "pro")
    assert shop.fake.complete(first.id)
    tried = shop.fake.get("checkout.session", first.id)["subscription"]
    await shop.api.write(f"subscriptions/{tried}", {}, key="portal", method="delete")
    second = await shop.begin(user_id, "pro")
    assert second.id == (await shop.begin(user_id, "pro")).id
    assert shop.fake.complete(second.id)
    bought = shop.fake.get("checkout.session", second.id)["subscription"]
    assert shop.fake.get("subscription", bought)["status"] == "active"


async def test_a_user_of_whom_nobody_has_told_yet_can_buy(shop: Shop) -> None:
    user_id = uuid4()
    session = await shop.begin(user_id)
    await shop.sign_up(user_id, "late@example.org")
    await shop.idle()
    (customer,) = shop.fake.all("customer")
    assert customer["email"] == "late@example.org"
    assert shop.fake.get("checkout.session", session.id)["customer"] == customer["id"]


async def test_ten_concurrent_checkouts_of_a_user_are_one_session(shop: Shop) -> None:
    user_id = await shop.sign_up()
    sessions = await asyncio.gather(*(shop.begin(user_id) for _ in range(10)))
    assert len({session.id for session in sessions}) == 1
    assert len(shop.fake.all("checkout.session")) == 1
    assert len(shop.fake.all("customer")) == 1


async def test_two_replicas_make_one_session(shop: Shop, open_database: Callable[[str], Database]) -> None:
    user_id = await shop.buyer()
    async with Shop(open_database("payment"), shop.fake, shop.clock).open() as other:
        other.plans, other.checkouts = shop.plans, other.checkouts
        other.checkouts._catalogue = shop.catalogue  # pyright: ignore[reportPrivateUsage] - one price list for both
        sessions = await asyncio.gather(*(one.begin(user_id) for one in (shop, other) * 3))
    assert len({session.id for session in sessions}) == 1
    assert len(shop.fake.all("checkout.session")) == 1


async def test_the_same_session_comes_back_while_it_is_open_and_a_new_one_after(shop: Shop) -> None:
    user_id = await shop.buyer()
    first = await shop.begin(user_id)
    shop.pass_time(1800)
    assert (await shop.begin(user_id)).id == first.id
    shop.pass_time(1801)
    assert shop.fake.get("checkout.session", first.id)["status"] == "expired"
    assert (await shop.begin(user_id)).id != first.id


async def test_another_wish_closes_the_session_before_it(shop: Shop) -> None:
    user_id = await shop.buyer()
    first = await shop.begin(user_id, "max")
    second = await shop.begin(user_id, "pro")
    assert [shop.fake.get("checkout.session", one.id)["status"] for one in (first, second)] == ["expired", "open"]


async def test_different_wishes_at_the_same_moment_leave_one_open_session(shop: Shop) -> None:
    user_id = await shop.buyer()
    wishes = [shop.begin(user_id, plan) for plan in ("max", "pro", "pro-year") * 3]
    ended = await asyncio.gather(*wishes, return_exceptions=True)
    assert {type(one) for one in ended if isinstance(one, BaseException)} <= {ChangePending}
    assert len([one for one in shop.fake.all("checkout.session") if one["status"] == "open"]) == 1


async def test_a_second_checkout_is_refused_even_before_we_have_heard_of_the_first_payment(shop: Shop) -> None:
    user_id = await shop.buyer()
    session = await shop.begin(user_id)
    assert shop.fake.complete(session.id)
    subscription = shop.fake.get("checkout.session", session.id)["subscription"]
    with pytest.raises(AlreadySubscribed):
        await shop.begin(user_id)
    assert ("subscription", subscription) in shop.marked
    await shop.follow(user_id, subscription)
    with pytest.raises(AlreadySubscribed):
        await shop.begin(user_id, "pro")
    assert len(shop.fake.all("checkout.session")) == 1


async def test_whoever_pays_with_coins_buys_no_second_subscription_by_card(shop: Shop) -> None:
    user_id = await shop.buyer()
    await shop.have(user_id, State("crypto", None, "pro", "active", period_end=shop.clock() + timedelta(days=9)))
    with pytest.raises(AlreadySubscribed):
        await shop.begin(user_id)
    assert shop.sent("POST", "checkout/sessions") == []


async def test_a_session_whose_answer_was_lost_is_found_and_not_made_twice(shop: Shop) -> None:
    user_id = await shop.buyer()
    shop.fake.fail("POST", "/v1/checkout/sessions", Fault(0, effect=True))
    asked = asyncio.create_task(shop.begin(user_id))
    await eventually(lambda: shop.uncertain("checkout.create"))
    shop.pass_time(5)
    session = await asked
    assert [one["id"] for one in shop.fake.all("checkout.session")] == [session.id]
    assert len(shop.sent("POST", "checkout/sessions")) == 1


async def test_a_wish_that_nobody_could_answer_in_time_is_kept_and_the_next_request_hears_of_it(
    shop: Shop, open_database: Callable[[str], Database]
) -> None:
    user_id = await shop.buyer()
    hasty = Shop(open_database("payment"), shop.fake, shop.clock, wait_s=0.2)
    hasty.checkouts._catalogue = shop.catalogue  # pyright: ignore[reportPrivateUsage] - one price list for both
    shop.fake.fail("POST", "/v1/checkout/sessions", Fault(429))
    with pytest.raises(Pending) as told:
        await hasty.begin(user_id)
    assert told.value.status == 503
    assert told.value.retry_after_s is not None
    await eventually(lambda: any(request.status == 429 for request in shop.fake.requests))
    await eventually(lambda: _waits(shop))
    shop.pass_time(5)
    await shop.idle()
    session = await hasty.begin(user_id)
    await hasty.api.close()
    assert [one["id"] for one in shop.fake.all("checkout.session")] == [session.id]


async def test_a_customer_deleted_at_stripe_is_made_anew_on_the_way(shop: Shop) -> None:
    user_id = await shop.buyer()
    old = await shop.customers.known(user_id)
    await shop.api.write(f"customers/{old}", {}, key="d", method="delete")
    session = await shop.begin(user_id)
    new = await shop.customers.known(user_id)
    assert new != old
    assert shop.fake.get("checkout.session", session.id)["customer"] == new


async def test_what_is_not_for_sale_is_refused(shop: Shop) -> None:
    user_id = await shop.buyer()
    with pytest.raises(NotFound):
        await shop.begin(user_id, "gold")
    with pytest.raises(NotOffered):
        await shop.begin(user_id, "paper")
    with pytest.raises(CouponInvalid):
        await shop.begin(user_id, coupon="NOSUCH")
    shop.fake.promotion("OLD", percent_off=50, active=False)
    with pytest.raises(CouponInvalid):
        await shop.begin(user_id, coupon="OLD")
    shop.fake.promotion("BOBS", percent_off=50, customer=await shop.customers.known(await shop.buyer()))
    with pytest.raises(CouponInvalid):
        await shop.begin(user_id, coupon="BOBS")
    assert shop.fake.all("checkout.session") == []


async def test_a_coupon_makes_it_cheaper(shop: Shop) -> None:
    user_id = await shop.buyer()
    shop.fake.promotion("SPRING", percent_off=50)
    session = await shop.begin(user_id, coupon="spring")
    assert shop.fake.complete(session.id)
    (invoice,) = shop.fake.all("invoice")
    assert invoice["amount_paid"] == 2950


async def test_two_running_subscriptions_become_one_and_the_later_is_paid_back(shop: Shop) -> None:
    user_id, first = await shop.subscriber()
    customer = await shop.customers.known(user_id)
    assert customer is not None
    shop.pass_time(60)
    second = await shop.bought_by_hand(customer, "pro")
    invoice = shop.fake.get("subscription", second)["latest_invoice"]
    charge = shop.fake.charge_of(invoice)
    await shop.suspect(user_id, customer)
    await shop.suspect(user_id, customer)
    await shop.idle()
    assert shop.fake.get("subscription", first)["status"] == "active"
    assert shop.fake.get("subscription", second)["status"] == "canceled"
    assert shop.fake.get("charge", charge["id"])["refunded"] is True
    assert len(shop.fake.all("refund")) == 1
    (told,) = [one for one in await shop.audited() if one["action"] == "cancel.double_subscription"]
    assert told["details"]["subscription"] == second
    assert told["details"]["kept"] == [first]
    assert {("subscription", first), ("subscription", second)} <= set(shop.marked)


async def test_a_card_subscription_beside_one_of_coins_is_ended_and_paid_back(shop: Shop) -> None:
    user_id = await shop.buyer()
    session = await shop.begin(user_id)
    await shop.have(user_id, State("crypto", None, "pro", "active", period_end=shop.clock() + timedelta(days=9)))
    assert shop.fake.complete(session.id)
    customer = await shop.customers.known(user_id)
    assert customer is not None
    await shop.suspect(user_id, customer)
    await shop.idle()
    (subscription,) = shop.fake.all("subscription")
    assert subscription["status"] == "canceled"
    assert len(shop.fake.all("refund")) == 1


async def test_a_subscription_that_follows_one_that_is_over_unheard_of_stays(shop: Shop) -> None:
    user_id, customer, second = await _doubled(shop)
    first = shop.fake.all("subscription")[0]["id"]
    await shop.api.write(f"subscriptions/{first}", {}, key="by-hand", method="delete")
    already = len(shop.marked)
    await shop.suspect(user_id, customer)
    await shop.idle()
    assert shop.fake.get("subscription", second)["status"] == "active"
    assert shop.fake.all("refund") == []
    assert ("subscription", first) in shop.marked[already:], "we hear that it is over"


def test_a_request_hears_that_its_wish_is_kept_before_the_gateway_gives_up() -> None:
    assert ApiSettings.model_fields["upstream_read_s"].default > WAIT_S + 1


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/refunds"), ("DELETE", "/v1/subscriptions/.+")])
async def test_ending_a_doubled_subscription_is_not_given_up_while_stripe_is_away_for_long(
    shop: Shop, method: str, path: str
) -> None:
    user_id, customer, second = await _doubled(shop)
    shop.fake.fail(method, path, *[Fault(429)] * 3)
    await shop.suspect(user_id, customer)
    await eventually(lambda: _busy(shop, path))
    shop.pass_time(20 * 60)
    await eventually(lambda: _settled_in_time(shop, 1))
    assert shop.fake.get("subscription", second)["status"] == "canceled"
    assert len(shop.fake.all("refund")) == 1


async def test_a_refund_of_a_doubled_subscription_that_does_not_work_is_audited_and_counted(shop: Shop) -> None:
    user_id, customer, _ = await _doubled(shop)
    shop.fake.fail("POST", "/v1/refunds", *[Fault(429)] * 500)
    counted = UNRESOLVED.labels("refund.create")._value  # pyright: ignore[reportPrivateUsage] - no other way to read it
    before = counted.get()
    await shop.suspect(user_id, customer)
    await eventually(lambda: _busy(shop, "/v1/refunds"))
    shop.pass_time(24 * 3600)
    await eventually(lambda: _settled_in_time(shop, 1))
    (told,) = [one for one in await shop.audited() if one["action"] == "refund.failed"]
    assert told["subject"] == str(user_id)
    assert told["details"]["kind"] == "refund.create"
    assert counted.get() == before + 1


async def _doubled(shop: Shop) -> tuple[UUID, str, str]:
    """Return a user who pays for two subscriptions, their customer, and the later of the two."""
    user_id, _ = await shop.subscriber()
    customer = await shop.customers.known(user_id)
    assert customer is not None
    return user_id, customer, await shop.bought_by_hand(customer, "pro")


async def _busy(shop: Shop, path: str) -> bool:
    """Whether Stripe was asked for it, and did not do it."""
    asked = [one for one in shop.fake.requests if one.method != "GET" and re.fullmatch(path, one.path)]
    waiting = await shop.rows("select id from stripe_calls where status = 'pending' and due_at > created_at")
    return bool(asked) and bool(waiting)


async def _settled_in_time(shop: Shop, seconds: float) -> bool:
    shop.pass_time(seconds)
    return not await shop.rows("select id from stripe_calls where status in ('pending', 'claimed', 'started')")


async def _waits(shop: Shop) -> bool:
    return [row["status"] for row in await shop.ordered("checkout.create")] == ["pending"]
