"""Something at a venue that takes as long as a test wants it to."""

import asyncio


class Stall:
    """Where somebody waits until `end`; `begun` once somebody does."""

    def __init__(self, then: Exception | None = None) -> None:
        self._then = then
        self.begun, self.end = asyncio.Event(), asyncio.Event()

    async def __call__(self) -> None:
        self.begun.set()
        await self.end.wait()
        if self._then is not None:
            raise self._then
