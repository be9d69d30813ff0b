"""What users say about where and when they want to be told."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.alerts.domain.grouping import Grouping
from services.alerts.domain.routing import Wishes
from services.alerts.service.audit import Actor, audited
from services.alerts.store.preferences import PreferenceStore
from shared.clock import Clock, NewId
from shared.db import Tx
from shared.messaging.door import Done


@dataclass(frozen=True, slots=True)
class Said:
    """All that a user has said. Without a time zone of its own, the one of the user's settings holds."""

    wishes: Wishes
    timezone: str | None = None
    locale: str | None = None
    groupings: Sequence[Grouping] = ()


class Preferences:
    """Takes a transaction, returns what happened."""

    def __init__(
        self,
        store: PreferenceStore,
        *,
        clock: Clock,
        new_id: NewId,
        said: Callable[[UUID, Wishes, Tx], Awaitable[None]] | None = None,
    ) -> None:
        """Prepare. `said` hears what a user wants now; their time zone may be another one, too."""
        self._store = store
        self._said = said
        self._clock = clock
        self._new_id = new_id

    async def put(self, actor: Actor, user_id: UUID, said: Said, tx: Tx) -> Done[None]:
        """Replace what a user has said before."""
        now, wishes = self._clock(), said.wishes
        fields = {
            "timezone": said.timezone,
            "locale": said.locale,
            "quiet_start": wishes.quiet and wishes.quiet.start,
            "quiet_end": wishes.quiet and wishes.quiet.end,
            "choices": [
                {"kind": kind, "channel": channel, "choice": choice}
                for (kind, channel), choice in sorted(wishes.choices.items())
            ],
            "caps": [{"kind": one.kind, "channel": one.channel, "per_hour": one.per_hour} for one in wishes.caps],
            "inhibitions": [
                {"source": one.source, "target": one.target, "equal": list(one.equal), "minutes": one.minutes}
                for one in wishes.inhibitions
            ],
            "groupings": [
                {
                    "kind": one.kind,
                    "by": one.by,
                    "wait_s": one.wait_s,
                    "interval_s": one.interval_s,
                    "repeat_s": one.repeat_s,
                }
                for one in said.groupings
            ],
            "turns": list(wishes.turns),
            "escalations": [
                {"kind": kind, "after_minutes": minutes} for kind, minutes in sorted(wishes.escalations.items())
            ],
        }
        await self._store.put(tx, user_id, fields, now)
        if self._said is not None:
            await self._said(user_id, wishes, tx)
        return Done(None, [audited(actor, "set.preferences", str(user_id), id=self._new_id(), at=now)])
