"""What an auditor asks about later: who changed a subscription, and what was refused."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID
from weakref import WeakSet

from shared.clock import Clock, NewId
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Permanent
from shared.messaging.door import Door

SYSTEM: Final = "system"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does something, and in which request."""

    user_id: UUID
    request_id: str | None = None


class Audit:
    """Writes ActionAudited."""

    def __init__(self, door: Door, *, clock: Clock, new_id: NewId) -> None:
        self._door = door
        self._clock = clock
        self._new_id = new_id
        self._told = WeakSet[Exception]()

    def of(self, actor: Actor | None, action: str, subject: str, **details: Any) -> Event:
        """Return the event; nobody stands for the system itself."""
        now = self._clock()
        return ActionAudited(
            id=self._new_id(),
            time=now,
            service="payment",
            actor=SYSTEM if actor is None else str(actor.user_id),
            request_id=None if actor is None else actor.request_id,
            action=action,
            subject=subject,
            at=now,
            details=details,
        )

    @asynccontextmanager
    async def refusals(self, actor: Actor, action: str, **details: Any) -> AsyncGenerator[None]:
        """Tell of what is refused for good inside the block, and let the error go on."""
        try:
            yield
        except Permanent as error:
            await self.refused(actor, action, error, code=error.code, **details)
            raise

    async def refused(self, actor: Actor, action: str, error: Exception, **details: Any) -> None:
        """Tell of an error that refuses something; of the same error only once."""
        if error in self._told:
            return
        self._told.add(error)
        told = self.of(actor, f"refuse.{action}", str(actor.user_id), **details)

        async def publish(tx: Tx) -> Sequence[Event]:
            del tx
            return [told]

        await self._door.publish(publish)
