"""Callbacks of venues: each is kept once, as it came, and the order that it names is looked up.

What would surprise you: a callback changes no order. It may come twice, late, or before the answer to the submit, and
the look-up tells the same each time. One that names an order by an id of the venue's that we have not heard of is
tried again for an hour, for the answer to the submit may be on its way.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from services.broker.domain.callbacks import Signature, read, secret_key
from services.broker.store.callbacks import CallbackStore
from shared.clock import Clock
from shared.db import Tx
from shared.errors import NotFound, Unauthenticated
from shared.messaging.door import Done, Door

TRIED_FOR: Final = timedelta(hours=1)
KEPT_FOR: Final = timedelta(days=90)

WantLookUp = Callable[[Tx, str, UUID | None, str | None], Awaitable[bool]]
"""Asks for a look-up soon, of a venue's order by our id, by the venue's, or both; tells whether there is such an order
of that venue."""

RECEIVED: Final = Counter(
    "openbell_broker_callbacks_total", "Callbacks that came, by what became of them", ["venue", "outcome"]
)  # looked_up, open, names_nothing, known, refused


class NoSuchCallback(NotFound):
    """There is no such venue here, or it sends no callbacks."""

    code = "UNKNOWN_VENUE"


class Callbacks:
    """Takes callbacks. `secrets` are those of each venue that sends any; while one is changed, both count."""

    def __init__(
        self,
        secrets: Mapping[str, Sequence[str]],
        store: CallbackStore,
        want_look_up: WantLookUp,
        door: Door,
        clock: Clock,
    ) -> None:
        self._keys = {venue: [secret_key(one) for one in some] for venue, some in secrets.items() if some}
        self._store = store
        self._want_look_up = want_look_up
        self._door = door
        self._clock = clock

    def knows(self, venue: str) -> None:
        """Raise NoSuchCallback for a venue that sends none."""
        if venue not in self._keys:
            raise NoSuchCallback

    async def take(self, venue: str, body: bytes, signature: Signature) -> bool:
        """Keep a callback and ask for its order; return, after the commit, whether it was new.

        Raises NoSuchCallback, BadSignature, SignatureExpired.
        """
        self.knows(venue)
        now = self._clock()
        try:
            hint = read(body, signature, self._keys[venue], now)
        except Unauthenticated:
            RECEIVED.labels(venue, "refused").inc()
            raise

        async def keep(tx: Tx) -> Done[str]:
            order = (hint.order_id, hint.venue_order_id)
            if not await self._store.add(tx, venue, hint.event_id, body, signed_at=hint.signed_at, order=order, at=now):
                return Done("known")
            if not hint.names_order:
                return Done("names_nothing")
            if await self._want_look_up(tx, venue, *order):
                return Done("looked_up")
            await self._store.leave(tx, venue, hint.event_id, open_=True)
            return Done("open")

        outcome = await self._door.run(keep)
        RECEIVED.labels(venue, outcome).inc()
        return outcome != "known"

    async def again(self, now: datetime) -> None:
        """Try those once more whose order was not known yet (a job of every minute)."""
        async with self._door.transaction() as tx:
            for row in await self._store.open(tx, now - TRIED_FOR):
                if await self._want_look_up(tx, row["venue"], row["order_id"], row["venue_order_id"]):
                    await self._store.leave(tx, row["venue"], row["event_id"], open_=False)

    async def forget(self, now: datetime) -> None:
        """Delete old ones (a job of every day)."""
        await self._store.forget(self._door.transaction, now - KEPT_FOR)
