"""Every user has exactly one customer at Stripe, whatever goes wrong on the way."""

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.payment.service.customers import DOUBLED
from shared.contracts.base import Event
from shared.db import Row, Tx
from tests.conftest import eventually
from tests.fakes.stripe import Fault
from tests.payment.buying import Shop


async def test_a_sign_up_makes_one_customer_that_bears_the_user(shop: Shop) -> None:
    user_id = await shop.buyer()
    (customer,) = shop.fake.all("customer")
    assert customer["metadata"]["user_id"] == str(user_id)
    assert customer["email"] == f"{user_id.hex[:8]}@example.org"
    assert await shop.customers.known(user_id) == customer["id"]
    assert ("customer", customer["id"]) in shop.marked


async def test_a_sign_up_told_twenty_times_at_once_makes_one_customer(shop: Shop) -> None:
    user_id = uuid4()
    await asyncio.gather(*(shop.sign_up(user_id) for _ in range(20)))
    await shop.idle()
    assert len(shop.fake.all("customer")) == 1
    assert len(await shop.ordered("customer.create")) == 1


async def test_a_creation_that_was_never_answered_is_looked_up_and_not_repeated(shop: Shop) -> None:
    shop.fake.fail("POST", "/v1/customers", Fault(0, effect=True))
    user_id = await shop.sign_up()
    await eventually(lambda: shop.uncertain("customer.create"))
    shop.pass_time(5)
    await shop.idle()
    (customer,) = shop.fake.all("customer")
    assert await shop.customers.known(user_id) == customer["id"]
    assert len(shop.sent("POST", "customers")) == 1


async def test_a_creation_that_failed_before_its_effect_goes_on_under_another_key(shop: Shop) -> None:
    shop.fake.fail("POST", "/v1/customers", Fault(500))
    user_id = await shop.sign_up()
    await eventually(lambda: shop.uncertain("customer.create"))
    for _ in range(3):  # the same key repeats the failure, then another one works
        shop.pass_time(5)
        await asyncio.sleep(0)
        await eventually(lambda: _nothing_in_flight(shop))
    await eventually(lambda: _known(shop, user_id))
    keys = [request.key for request in shop.sent("POST", "customers")]
    assert keys == [keys[0], keys[0], f"{keys[0]}/1"]
    assert len(shop.fake.all("customer")) == 1


async def test_a_creation_of_yesterday_is_not_repeated_but_the_daily_job_makes_the_customer(shop: Shop) -> None:
    shop.fake.fail("POST", "/v1/customers", Fault(0, effect=False))
    user_id = await shop.sign_up()
    await eventually(lambda: shop.uncertain("customer.create"))
    shop.pass_time(25 * 3600)
    await shop.idle()
    (call,) = await shop.ordered("customer.create")
    assert call["status"] == "failed"
    assert shop.fake.all("customer") == []
    await shop.customers.assert_all(shop.clock())
    await shop.idle()
    assert await shop.customers.known(user_id) == shop.fake.all("customer")[0]["id"]
    assert len(await shop.ordered("customer.create")) == 2


async def test_a_new_address_is_told_to_stripe_once(shop: Shop) -> None:
    user_id = await shop.buyer()
    for _ in range(3):
        await shop.sign_up(user_id, "new@example.org")
    await shop.idle()
    (customer,) = shop.fake.all("customer")
    assert customer["email"] == "new@example.org"
    assert len(shop.sent("POST", f"customers/{customer['id']}")) == 1


async def test_an_address_that_changes_while_the_customer_is_made_arrives_too(shop: Shop) -> None:
    shop.fake.fail("POST", "/v1/customers", Fault(0, effect=True))
    user_id = await shop.sign_up()
    await eventually(lambda: shop.uncertain("customer.create"))
    await shop.sign_up(user_id, "new@example.org")
    shop.pass_time(5)
    await shop.idle()
    assert [one["email"] for one in shop.fake.all("customer")] == ["new@example.org"]


async def test_the_daily_job_adopts_makes_and_makes_anew(shop: Shop) -> None:
    adopted, missing, deleted = await shop.buyer(), await shop.buyer(), await shop.buyer()
    known = await shop.customers.known(adopted)
    await _forget(shop, f"update customers set stripe_id = null, told_email = null where user_id = '{adopted}'")
    gone = await shop.customers.known(missing)
    await shop.api.write(f"customers/{gone}", {}, key="d1", method="delete")
    await _forget(shop, f"update customers set stripe_id = null, told_email = null where user_id = '{missing}'")
    late = await shop.customers.known(deleted)
    await shop.api.write(f"customers/{late}", {}, key="d2", method="delete")
    await shop.customers.assert_all(shop.clock())
    await shop.idle()
    assert await shop.customers.known(adopted) == known
    for user_id, old in ((missing, gone), (deleted, late)):
        assert await shop.customers.known(user_id) not in {None, old}
    living = [one["metadata"]["user_id"] for one in shop.fake.all("customer") if not one.get("deleted")]
    assert sorted(living) == sorted(map(str, (adopted, missing, deleted)))
    before = len(await shop.rows("select id from stripe_calls"))
    await shop.customers.assert_all(shop.clock())
    assert len(await shop.rows("select id from stripe_calls")) == before


async def test_a_user_with_two_customers_is_reported_once_and_nothing_is_deleted(shop: Shop) -> None:
    user_id = await shop.buyer()
    first = await shop.customers.known(user_id)
    second = await shop.api.write("customers", {"metadata": {"user_id": str(user_id)}}, key="by-hand")
    await shop.customers.assert_all(shop.clock())
    await shop.customers.assert_all(shop.clock())
    told = [one for one in await shop.audited() if one["action"] == "report.doubled_customer"]
    assert [one["details"]["customers"] for one in told] == [[first, second["id"]]]
    assert DOUBLED._value.get() == 1  # pyright: ignore[reportPrivateUsage] - there is no other way to read a gauge
    assert await shop.customers.known(user_id) == first


async def test_a_customer_that_names_one_user_and_is_anothers_keeps_nobody_from_theirs(shop: Shop) -> None:
    ada, bob, carl = sorted([await shop.buyer(), await shop.buyer(), await shop.buyer()])
    taken, email = await shop.customers.known(ada), (await _row(shop, bob))["email"]
    await shop.api.write(f"customers/{taken}", {"metadata": {"user_id": str(bob)}, "email": email}, key="by-hand")
    for user_id in (bob, carl):
        known = await shop.customers.known(user_id)
        await shop.api.write(f"customers/{known}", {}, key=f"d/{known}", method="delete")
        await _forget(shop, f"update customers set stripe_id = null, told_email = null where user_id = '{user_id}'")
    for _ in range(2):
        await shop.customers.assert_all(shop.clock())
        await shop.idle()
    assert await shop.customers.known(ada) == taken
    linked = [await shop.customers.known(user_id) for user_id in (bob, carl)]
    assert len({taken, *linked, None}) == 4
    assert len(await shop.ordered("customer.create")) == 5


async def test_a_user_who_cannot_be_put_right_keeps_nobody_else_from_it(shop: Shop) -> None:
    first, second = sorted([await shop.sign_up(), await shop.sign_up()])
    await shop.idle()
    await _forget(shop, "update customers set stripe_id = null, told_email = null")
    mend = shop.customers._mend  # pyright: ignore[reportPrivateUsage] - whatever may go wrong with one

    async def broken(tx: Tx, row: Row, ids: Sequence[str], *, deleted: bool) -> Sequence[Event]:
        if row["user_id"] == first:
            raise ValueError("broken")
        return await mend(tx, row, ids, deleted=deleted)

    shop.customers._mend = broken  # pyright: ignore[reportPrivateUsage] - the same
    with pytest.raises(ValueError, match="broken"):
        await shop.customers.assert_all(shop.clock())
    assert await shop.customers.known(first) is None
    assert await shop.customers.known(second) is not None


async def test_more_users_than_a_page_holds_are_asserted(shop: Shop) -> None:
    users = [await shop.sign_up() for _ in range(130)]
    await shop.idle()
    await _forget(shop, "update customers set stripe_id = null, told_email = null")
    await shop.customers.assert_all(shop.clock())
    await shop.idle()
    assert len(shop.fake.all("customer")) == len(users)
    rows = await shop.rows(
        "select stripe_id from customers where stripe_id is null or told_email is distinct from email"
    )
    assert rows == []


async def _row(shop: Shop, user_id: UUID) -> Row:
    (row,) = await shop.rows("select * from customers where user_id = :u", u=user_id)
    return row


async def _known(shop: Shop, user_id: object) -> bool:
    return bool(await shop.rows("select 1 from customers where user_id = :u and stripe_id is not null", u=user_id))


async def _nothing_in_flight(shop: Shop) -> bool:
    return not await shop.rows(
        "select 1 from stripe_calls where status in ('claimed', 'started') or due_at <= :now and status = 'pending'",
        now=shop.clock(),
    )


async def _forget(shop: Shop, statement: str) -> None:
    async with shop.database.transaction() as tx:
        await tx.execute(text(statement))
