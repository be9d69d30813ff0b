"""The exchange's sessions, loaded once, when they are asked for first."""

import asyncio
from collections.abc import Awaitable, Callable

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
