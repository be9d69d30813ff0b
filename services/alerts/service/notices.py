"""Notices: what a user is told once, besides alerts. These are payments and trades."""

from collections.abc import Sequence
from uuid import UUID

from services.alerts.domain.notices import Told, id_of, notice_of
from services.alerts.service.routing import NoticeRing, Router
from services.alerts.store.notices import NoticeStore
from shared.clock import Clock
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import NotFound
from shared.messaging.door import Done


class Notices:
    """Takes a transaction, returns what happened."""

    def __init__(self, store: NoticeStore, *, router: Router, clock: Clock) -> None:
        self._store = store
        self._router = router
        self._clock = clock

    async def tell(self, events: Sequence[Told], tx: Tx) -> Sequence[Event]:
        """Write a notice for each event, and let it ring.

        An id that is there was told before.
        """
        notices = [
            {
                "notice_id": id_of(event),
                "user_id": event.user_id,
                "kind": (notice := notice_of(event)).kind,
                "title": notice.title,
                "lines": list(notice.lines),
                "at": event.time,
            }
            for event in events
        ]
        now = self._clock()
        new = await self._store.add(tx, notices, now)
        ringing = [NoticeRing(notice["notice_id"], notice["user_id"], notice["kind"]) for notice in new]
        await self._router.ring_notices(ringing, now, tx)
        return ()

    async def open(self, user_id: UUID, notice_id: UUID, tx: Tx) -> Done[None]:
        """Note that the user has seen a notice; again changes nothing. Raises NotFound."""
        if await self._store.opened(tx, user_id, notice_id, self._clock()) is None:
            raise NotFound("there is no such notice")
        return Done(None)
