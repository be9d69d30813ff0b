"""The exchange's sessions, loaded once, when they are asked for first."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime

from shared.errors import Transient
from shared.sessions import Sessions


class Calendar:
    """Calls `load` once, whoever asks and however many at once."""

    def __init__(self, load: Callable[[], Awaitable[Sessions]]) -> None:
        self._load = load
        self._loading = asyncio.Lock()
        self._sessions: Sessions | None = None

    async def __call__(self) -> Sessions:
        """Return the sessions."""
        async with self._loading:
            if self._sessions is None:
                self._sessions = await self._load()
            return self._sessions

    def hours(self, now: datetime) -> tuple[datetime, datetime]:
        """Return (opens, closes) of the session that runs, else of the next. Raises Transient before any is loaded."""
        if self._sessions is None:
            raise Transient("the exchange's sessions are not loaded yet")
        session = self._sessions.at(now)
        if now >= session.closes:
            session = self._sessions.at(self._sessions.next_open(now))
        return session.opens, session.closes
