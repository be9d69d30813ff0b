"""The sweep: what Stripe could not tell us, asked for; what it says of its objects, held against what we know.

It writes nothing but hints: whatever it finds is fetched and applied like everything else. So webhooks may be lost for
a day, or for ever, and our state still becomes Stripe's.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Final

from prometheus_client import Gauge

from services.payment.domain.stripe import KINDS, Object, same
from services.payment.ports import Stripe
from services.payment.service.intake import Intake
from services.payment.service.refresh import Refresh
from services.payment.store.mirror import MirrorStore
from shared.clock import Clock
from shared.db import Tx
from shared.errors import Permanent
from shared.messaging.door import Door

BACK: Final = timedelta(days=30)
"""So far Stripe's list of events reaches, and so old are the objects that are compared where there are many."""
BATCH: Final = 100

DIFFERENT: Final = Gauge("openbell_payment_sweep_different", "Objects that the last sweep found to differ", ["kind"])


class NothingListed(Permanent):
    """Stripe lists none of the objects that we know; the key may be another account's."""

    code = "NOTHING_LISTED"


class Sweep:
    """Compares Stripe with what we know."""

    def __init__(
        self, stripe: Stripe, intake: Intake, refresh: Refresh, mirror: MirrorStore, *, door: Door, clock: Clock
    ) -> None:
        self._stripe = stripe
        self._intake = intake
        self._refresh = refresh
        self._mirror = mirror
        self._door = door
        self._clock = clock

    async def run(self, at: datetime) -> None:
        """Sweep once; running again changes nothing. Raises NothingListed, and what asking Stripe raises.

        After a kind of which nothing is listed only those are compared of which nothing is ever taken for gone; what is
        listed elsewhere may be another account's. It is raised in the end.
        """
        del at
        await self._missed()
        nothing: list[NothingListed] = []
        for kind, about in KINDS.items():
            if about.listed is not None and (about.recent or not nothing):
                try:
                    await self._compare(kind, recent=about.recent)
                except NothingListed as error:
                    nothing.append(error)
        async with self._door.transaction() as tx:
            waiting = await self._mirror.waiting(tx)
            await self._refresh.want(tx, [("subscription", one) for one in waiting], hinted=False)
        if nothing:
            raise nothing[0]

    async def _missed(self) -> None:
        """Take in the events that Stripe could not deliver, as if they had come."""
        async for events in _batches(self._stripe.undelivered(self._clock() - BACK)):
            await self._door.run(lambda tx, events=events: self._intake.sweep(tx, events))

    async def _compare(self, kind: str, *, recent: bool) -> None:
        began = self._clock()
        seen: list[str] = []
        different = 0
        async for listed in _batches(self._stripe.list(kind, began - BACK if recent else None)):
            seen += [one["id"] for one in listed]
            async with self._door.transaction() as tx:
                different += await self._want_different(tx, kind, listed)
        if not recent:
            async with self._door.transaction() as tx:
                unseen = await self._mirror.unseen(tx, kind, seen, began)
                if unseen and not seen:
                    raise NothingListed(kind=kind, known=len(unseen))
                await self._refresh.want(tx, [(kind, one) for one in unseen], hinted=False)
            different += len(unseen)
        DIFFERENT.labels(kind).set(different)

    async def _want_different(self, tx: Tx, kind: str, listed: Sequence[Object]) -> int:
        known = await self._mirror.bodies(tx, kind, [one["id"] for one in listed])
        different = [one["id"] for one in listed if not same(known.get(one["id"]), one)]
        await self._refresh.want(tx, [(kind, one) for one in different], hinted=False)
        return len(different)


async def _batches(found: AsyncIterator[Object]) -> AsyncIterator[list[Object]]:
    batch: list[Object] = []
    async for one in found:
        batch.append(one)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
