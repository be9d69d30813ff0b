"""Notices: what a user is told once, besides alerts: payments and trades, and what their own rules ask for."""

from collections.abc import Collection, Mapping, Sequence
from uuid import UUID

from services.alerts.domain.notices import Saying, Told, account_of, id_of, notice_of, symbol_of
from services.alerts.domain.words import Words
from services.alerts.service.routing import NoticeRing, Router
from services.alerts.store.notices import NoticeStore
from services.alerts.store.preferences import PreferenceStore
from shared.clock import Clock
from shared.contracts.alerts import NoticeRaised
from shared.contracts.base import Event
from shared.db import Tx


class Notices:
    """Takes a transaction, returns what happened."""

    def __init__(self, store: NoticeStore, preferences: PreferenceStore, *, router: Router, clock: Clock) -> None:
        self._store = store
        self._preferences = preferences
        self._router = router
        self._clock = clock

    async def tell(self, events: Sequence[Told], tx: Tx) -> Sequence[Event]:
        """Write a notice for each event that everybody is told of, and let it ring."""
        words = await self.words(tx, {event.user_id for event in events})
        sayings = [
            Saying(id_of(event), event.user_id, notice_of(event, words[event.user_id]), event) for event in events
        ]
        return await self.say(sayings, tx)

    async def words(self, tx: Tx, user_ids: Collection[UUID]) -> Mapping[UUID, Words]:
        """Return how each user reads numbers and times."""
        return await self._preferences.words(tx, user_ids) if user_ids else {}

    async def say(self, sayings: Sequence[Saying], tx: Tx) -> Sequence[Event]:
        """Write notices, and let them ring.

        An id that is there was told before.
        """
        told: dict[UUID, Saying] = {}
        for saying in sayings:
            told.setdefault(saying.notice_id, saying)
        notices = [
            {
                "notice_id": saying.notice_id,
                "user_id": saying.user_id,
                "kind": saying.notice.kind,
                "title": saying.notice.title,
                "lines": list(saying.notice.lines),
                "at": saying.cause.time,
                "rule_id": saying.rule_id,
                "symbol": symbol_of(saying.cause),
                "account_id": account_of(saying.cause),
            }
            for saying in told.values()
        ]
        now = self._clock()
        new = [told[row["notice_id"]] for row in await self._store.add(tx, notices, now)]
        ringing = [
            NoticeRing(
                *(saying.notice_id, saying.user_id, saying.notice.kind, symbol_of(saying.cause), saying.rule_id),
                account_of(saying.cause),
            )
            for saying in new
        ]
        await self._router.ring_notices(ringing, now, tx)
        return [_raised(saying) for saying in new]


def _raised(saying: Saying) -> NoticeRaised:
    return NoticeRaised.caused_by(
        saying.cause,
        saying.notice_id,
        notice_id=saying.notice_id,
        user_id=saying.user_id,
        kind=saying.notice.kind,
        title=saying.notice.title,
        lines=saying.notice.lines,
        at=saying.cause.time,
    )
