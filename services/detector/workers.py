"""Door 3, the clock: the leaderboard every few seconds, and what is too old every night."""

import asyncio
from datetime import datetime

from services.detector.service import Detector
from shared.messaging.door import Door
from shared.schedule import Job


class LeaderboardWorker:
    """Brings the leaderboard up to date, for ever. Of several replicas one does it at a time."""

    name = "detector.leaderboard"

    def __init__(self, detector: Detector, door: Door, *, interval_s: float) -> None:
        self._detector = detector
        self._door = door
        self._interval_s = interval_s

    async def run(self) -> None:
        """Refresh, wait, again, until cancelled."""
        while True:
            await self._door.publish(self._detector.refresh_board)
            await asyncio.sleep(self._interval_s)


def retention(detector: Detector, door: Door) -> Job:
    """Return the nightly job that drops old sessions."""

    async def drop_old(due_at: datetime) -> None:
        await detector.drop_old(due_at.date(), door.transaction)

    return Job("retention", "20 5 * * *", drop_old)
