"""What users do with what they are told."""

from datetime import datetime, timedelta
from uuid import UUID

from services.alerts.domain.clicks import Clicks
from services.alerts.store.engagement import EngagementStore
from shared.clock import Clock
from shared.db import Tx
from shared.errors import NotFound
from shared.messaging.door import Done


class Engagement:
    """Takes a transaction, returns what happened."""

    def __init__(self, store: EngagementStore, clicks: Clicks, clock: Clock) -> None:
        self._store = store
        self._clicks = clicks
        self._clock = clock

    def since(self, days: int) -> datetime:
        """Return when the last `days` began."""
        return self._clock() - timedelta(days=days)

    async def open(self, user_id: UUID, subject_id: UUID, tx: Tx) -> Done[datetime]:
        """Keep that a user opened an alert or a notice; answer when they first did. Raises NotFound."""
        at = await self._store.opened(tx, user_id, subject_id, self._clock())
        if at is None:
            raise NotFound("there is no such alert")
        return Done(at)

    async def acknowledge(self, user_id: UUID, subject_id: UUID, tx: Tx) -> Done[datetime]:
        """Keep that a user acknowledged an alert or a notice; answer when they first did. Raises NotFound."""
        at = await self._store.acknowledged(tx, user_id, subject_id, self._clock())
        if at is None:
            raise NotFound("there is no such alert")
        return Done(at)

    async def click(self, token: str, tx: Tx) -> Done[str]:
        """Keep that a link was followed; answer the address that it leads to, always our own. Raises LinkRefused.

        What is gone by now is no error: the page it leads to says so.
        """
        click = self._clicks.read(token)
        await self._store.clicked(tx, click.user_id, click.subject_id, self._clock())
        return Done(self._clicks.address(click))
