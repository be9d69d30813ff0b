"""Silences: what a user is not told for a while, by whom that was said and why."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.alerts.domain.routing import Silence
from services.alerts.service.audit import Actor, audited
from services.alerts.store.silences import SilenceStore
from shared.clock import Clock, NewId
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.messaging.door import Done

MAX_SILENCES: Final = 100
LONGEST: Final = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class NewSilence:
    """A silence as it is asked for: `starts_at` None is now, `everything` says that naming nothing is meant."""

    kind: str | None
    symbol: str | None
    rule_id: UUID | None
    critical: bool | None
    starts_at: datetime | None
    ends_at: datetime
    comment: str
    everything: bool = False


class Silences:
    """Takes a transaction, returns what happened."""

    def __init__(self, store: SilenceStore, *, clock: Clock, new_id: NewId) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    async def add(self, actor: Actor, user_id: UUID, asked: NewSilence, tx: Tx) -> Done[Row]:
        """Add a silence. Raises Invalid for one that makes no sense, Conflict when there are too many."""
        now = self._clock()
        if asked.ends_at.year > now.year + 10:  # before anything is reckoned with it: it may lie past the last day
            raise Invalid("a silence ends within ten years")
        starts_at = asked.starts_at or now
        if asked.ends_at <= max(starts_at, now):
            raise Invalid("a silence ends after it starts, and not in the past")
        if asked.ends_at - starts_at > LONGEST:
            raise Invalid("a silence lasts a year at most; to hear no more of something, switch it off")
        named = Silence(asked.kind, asked.symbol, asked.rule_id, asked.critical, asked.ends_at)
        if named.everything != asked.everything:
            raise Invalid("name a kind, a symbol, a rule or a severity, or else, to silence everything, say `all`")
        if await self._store.running(tx, user_id, now) >= MAX_SILENCES:
            raise Conflict(f"{MAX_SILENCES} silences are the most a user may have at a time")
        fields = {
            "silence_id": self._new_id(),
            "user_id": user_id,
            "kind": asked.kind,
            "symbol": asked.symbol,
            "rule_id": asked.rule_id,
            "critical": asked.critical,
            "starts_at": starts_at,
            "ends_at": asked.ends_at,
            "author": actor.name,
            "comment": asked.comment,
        }
        row = await self._store.add(tx, fields, now)
        told = audited(actor, "add.silence", f"{user_id}/{row['silence_id']}", id=self._new_id(), at=now)
        return Done(row, [told])

    async def end(self, actor: Actor, user_id: UUID, silence_id: UUID, tx: Tx) -> Done[None]:
        """End a silence now, or call off one that is to come. Raises NotFound."""
        now = self._clock()
        if not await self._store.end(tx, user_id, silence_id, now):
            raise NotFound("there is no such silence, or it has ended")
        return Done(None, [audited(actor, "end.silence", f"{user_id}/{silence_id}", id=self._new_id(), at=now)])
