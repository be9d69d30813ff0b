"""Exactly one customer at Stripe for each user.

A sign-up orders a call that makes the customer, and a daily job asserts it for every user: it reads all customers of
Stripe once, adopts what is there, makes what is missing (also what somebody deleted), and reports users who have
several. Which of several is right is for a person to decide: each may have cards and subscriptions.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from services.payment.ports import Json, NoSuchObject, RawStripe
from services.payment.service.audit import Audit
from services.payment.service.calls import Call, Calls, ChangePending, open_
from services.payment.service.lookups import customers_of, pages
from services.payment.store.customers import CustomerStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import Clock
from shared.contracts.api import UserSignedUp
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.errors import Transient
from shared.messaging.door import Done, Door

_log = logging.getLogger(__name__)

DOUBLED: Final = Gauge("openbell_payment_customers_doubled", "Users with more than one customer at Stripe")
MENDED: Final = Counter("openbell_payment_customers_mended_total", "Customers that the daily job put right", ["how"])

BATCH: Final = 500
_FIRST: Final = UUID(int=0)


class Customers:
    """Who users are at Stripe. Without Stripe (`calls` is None) users are noted and nothing else happens."""

    def __init__(
        self,
        store: CustomerStore,
        notices: SubscriptionStore,
        *,
        door: Door,
        audit: Audit,
        clock: Clock,
        calls: Calls | None = None,
    ) -> None:
        self._store = store
        self._notices = notices
        self._door = door
        self._audit = audit
        self._clock = clock
        self._calls = calls
        if calls is not None:
            calls.before("customer.create", self._existing)
            calls.after("customer.create", self._made)
            calls.after("customer.update", self._updated)

    async def signed_up(self, event: UserSignedUp, tx: Tx) -> Sequence[Event]:
        """Note a new user, or the address that one has now, and see that Stripe knows it."""
        await self._store.know(tx, event.user_id, event.email, self._clock())
        await self._ensure(tx, event.user_id)
        return ()

    async def id_of(self, user_id: UUID) -> str:
        """Return who a user is at Stripe; makes the customer where there is none. Raises as Calls.result does.

        A user of whom nobody has told yet gets a customer without an address, which follows.
        """

        async def order(tx: Tx) -> Done[str | UUID]:
            await self._store.know(tx, user_id, None, self._clock())
            row = await self._store.get(tx, user_id)
            if row is not None and row["stripe_id"] is not None:
                return Done(row["stripe_id"])
            call = await self._ensure(tx, user_id)
            if call is None:
                raise AssertionError("a user without a customer needs one")
            return Done(call["id"])

        found = await self._door.run(order)
        if isinstance(found, str) or self._calls is None:
            return str(found)
        return str((await self._calls.result(found))["id"])

    async def known(self, user_id: UUID) -> str | None:
        """Return who a user is at Stripe."""
        async with self._door.read() as tx:
            row = await self._store.get(tx, user_id)
        return None if row is None else row["stripe_id"]

    async def gone(self, tx: Tx, user_id: UUID, stripe_id: str) -> Sequence[Event]:
        """Make a user's customer anew: Stripe says that it was deleted."""
        if await self._store.gone(tx, user_id, stripe_id):
            await self._ensure(tx, user_id)
        return ()

    async def deleted(self, tx: Tx, told: Json | None, object_id: str) -> list[Event]:
        """Apply what Stripe says of a customer: one that was deleted is made anew."""
        if told is None and (row := await self._store.of_stripe(tx, object_id)) is not None:
            await self.gone(tx, row["user_id"], object_id)
        return []

    async def linked(self, tx: Tx, told: Json | None, object_id: str) -> list[Event]:
        """Apply what Stripe says of a customer: one without an address gets the user's.

        Another address is left alone: it is where the user wants invoices to go.
        """
        if told is not None and (row := await self._store.of_stripe(tx, object_id)) is not None:
            if row["told_email"] is None and row["email"] is not None and told.get("email"):
                await self._store.told(tx, row["user_id"], object_id, row["email"])
            await self._ensure(tx, row["user_id"])
        return []

    async def assert_all(self, at: datetime) -> None:
        """See that every user has exactly one customer; running again changes nothing.

        One who cannot be put right keeps nobody else from it, and is raised in the end. Raises Transient at once.
        """
        del at
        if self._calls is None:
            return
        stripe = self._calls.stripe
        listed: dict[str, list[str]] = defaultdict(list)
        every: set[str] = set()
        async for one in pages(stripe, "customers", {}):
            every.add(one["id"])
            if user := (one.get("metadata") or {}).get("user_id"):
                listed[user].insert(0, one["id"])  # the list comes newest first
        doubled, after, errors = 0, _FIRST, list[Exception]()
        while True:
            async with self._door.read() as tx:
                rows = await self._store.page(tx, after, BATCH)
            for row in rows:
                ids = listed.get(str(row["user_id"]), [])
                doubled += len(ids) > 1
                try:
                    await self._assert_one(stripe, row, ids, every)
                except Transient:
                    raise
                except Exception as error:  # noqa: BLE001 - raised below, when the others had their turn
                    _log.exception("payment.customer_not_asserted", extra={"user_id": str(row["user_id"])})
                    errors.append(error)
            if len(rows) < BATCH:
                break
            after = rows[-1]["user_id"]
        DOUBLED.set(doubled)
        if errors:
            raise errors[0]

    async def _assert_one(self, stripe: RawStripe, row: Row, ids: Sequence[str], every: set[str]) -> None:
        """Put one user right. A customer that is not listed may be younger than the list: Stripe is asked."""
        linked: str | None = row["stripe_id"]
        deleted = linked is not None and linked not in every and await _is_deleted(stripe, linked)
        if deleted or linked is None or len(ids) > 1 or row["told_email"] != row["email"]:
            await self._door.publish(lambda tx: self._mend(tx, row, ids, deleted=deleted))

    async def _mend(self, tx: Tx, row: Row, ids: Sequence[str], *, deleted: bool) -> Sequence[Event]:
        user_id: UUID = row["user_id"]
        if deleted and await self._store.gone(tx, user_id, row["stripe_id"]):
            MENDED.labels("deleted").inc()
        if ids and await self._store.link(tx, user_id, ids[0], None):
            MENDED.labels("adopted").inc()
        await self._ensure(tx, user_id)
        name = f"customers-doubled/{user_id}/{','.join(sorted(ids))}"
        if len(ids) > 1 and await self._notices.first_notice(tx, name, self._clock()):
            return [self._audit.of(None, "report.doubled_customer", str(user_id), customers=list(ids))]
        return ()

    async def _ensure(self, tx: Tx, user_id: UUID) -> Row | None:
        """Order what a user lacks at Stripe; return the call that is on its way, if there is one."""
        if self._calls is None:
            return None
        lane = f"customer/{user_id}"
        row, last = await self._store.get(tx, user_id), await self._calls.last(tx, lane)
        if last is not None and open_(last):
            return last  # when it is done, this is asked again
        if row is None or (row["stripe_id"] is not None and row["told_email"] == row["email"]):
            return None
        about: dict[str, Any] = {"metadata": {"user_id": str(user_id)}}
        if row["email"] is not None:
            about["email"] = row["email"]
        call = Call("customer.create", lane, user_id, "customers", about)
        if row["stripe_id"] is not None:
            call = Call("customer.update", lane, user_id, f"customers/{row['stripe_id']}", about)
        try:
            return await self._calls.order(tx, call)
        except ChangePending:
            return await self._calls.last(tx, lane)

    async def _existing(self, row: Row) -> Json | None:
        """Find the customer of an earlier life of this table before another is made; none that is another user's."""
        if self._calls is None or (email := row["params"].get("email")) is None:
            return None
        for one in await customers_of(self._calls.stripe, row["user_id"], email):
            async with self._door.read() as tx:
                taken = await self._store.of_stripe(tx, one["id"])
            if taken is None or taken["user_id"] == row["user_id"]:
                return one
        return None

    async def _made(self, tx: Tx, row: Row, result: Json) -> Sequence[Event]:
        user_id: UUID = row["user_id"]
        linked = await self._store.link(tx, user_id, result["id"], row["params"].get("email"))
        current = await self._store.get(tx, user_id)
        await self._ensure(tx, user_id)
        if not linked and current is not None and current["stripe_id"] != result["id"]:
            customers = [current["stripe_id"], result["id"]]
            return [self._audit.of(None, "report.doubled_customer", str(user_id), customers=customers)]
        return ()

    async def _updated(self, tx: Tx, row: Row, result: Json) -> Sequence[Event]:
        await self._store.told(tx, row["user_id"], result["id"], row["params"]["email"])
        await self._ensure(tx, row["user_id"])
        return ()


async def _is_deleted(stripe: RawStripe, stripe_id: str) -> bool:
    try:
        return bool((await stripe.read(f"customers/{stripe_id}")).get("deleted"))
    except NoSuchObject:
        return True
