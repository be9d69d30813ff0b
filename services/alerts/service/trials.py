"""Trying a channel: one message to one of its targets, by the same worker as everything else.

What would surprise you: it heeds no quiet hours, caps or silences, for somebody waits for it; so few are allowed.
"""

from datetime import timedelta
from typing import Final
from uuid import UUID

from services.alerts.domain.routing import TEST
from services.alerts.service.audit import Actor, audited
from services.alerts.service.routing import Router
from services.alerts.store.audience import AudienceStore
from services.alerts.store.notices import NoticeStore
from shared.clock import Clock, NewId
from shared.contracts.alerts import Channel
from shared.db import Tx
from shared.errors import Conflict, NotFound, RateLimited
from shared.messaging.door import Done

AN_HOUR: Final = 10
"""Tests that a user may send in an hour, over all channels."""


class Trials:
    """Sends tests."""

    def __init__(
        self, audience: AudienceStore, notices: NoticeStore, router: Router, *, clock: Clock, new_id: NewId
    ) -> None:
        self._audience = audience
        self._notices = notices
        self._router = router
        self._clock = clock
        self._new_id = new_id

    async def send(self, actor: Actor, user_id: UUID, channel: Channel, target_id: str, tx: Tx) -> Done[UUID]:
        """Write a delivery to one target; answer its id, by which the log tells how it ended.

        Raises NotFound, Conflict with the reason for a target that is not enabled, RateLimited.
        """
        await self._audience.lock_channels(tx, user_id)
        lane, now = f"{channel}/{target_id}", self._clock()
        known = next((row for row in await self._audience.channels(tx, user_id) if row["lane"] == lane), None)
        if known is None:
            raise NotFound("there is no such target")
        if not known["enabled"]:
            raise Conflict(known["reason"] or "this target is not enabled")
        hour = timedelta(hours=1)
        sent = await self._notices.lately(tx, user_id, TEST, now - hour)
        if len(sent) >= AN_HOUR:
            wait_s = (sent[AN_HOUR - 1] + hour - now).total_seconds()
            raise RateLimited(f"{AN_HOUR} tests are the most in an hour", retry_after_s=wait_s)
        notice_id = self._new_id()
        notice = {
            "notice_id": notice_id,
            "user_id": user_id,
            "kind": TEST,
            "title": "A test from Openbell",
            "lines": ["This channel works."],
            "at": now,
            "rule_id": None,
        }
        await self._notices.add(tx, [notice], now)
        delivery_id = await self._router.ring_target(notice_id, known, now, tx)
        told = audited(actor, "test.channel", f"{user_id}/{lane}", id=self._new_id(), at=now)
        return Done(delivery_id, [told])
