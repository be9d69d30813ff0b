"""Door 3, the clock: the sweep over Stripe, and retention."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final

from services.payment.service.sweep import Sweep
from services.payment.store.refreshes import RefreshStore
from shared import months
from shared.errors import NotFound
from shared.messaging.door import Door
from shared.schedule import POLL_S, Job

SWEEP: Final = "stripe-sweep"
KEEP_REFRESHES: Final = timedelta(days=30)


def sweeps(sweep: Sweep) -> Job:
    """Return the job that sweeps, each quarter of an hour."""
    return Job(SWEEP, "*/15 * * * *", sweep.run)


class SweepAtStart:
    """Asks for a sweep when the service starts; then there is nothing to do."""

    name = "stripe-sweep-at-start"

    def __init__(self, run_now: Callable[[str], Awaitable[None]]) -> None:
        self._run_now = run_now

    async def run(self) -> None:
        """Ask, as soon as the scheduler has registered its jobs; wait until cancelled."""
        while True:
            try:
                await self._run_now(SWEEP)
            except NotFound:
                await asyncio.sleep(POLL_S)
            else:
                break
        await asyncio.Event().wait()


def retention(refreshes: RefreshStore, door: Door, webhook_months: int) -> Job:
    """Return the job that makes the months to come and drops what is past its time."""

    async def run(at: datetime) -> None:
        async with door.transaction() as tx:
            await months.roll(tx, "webhooks", "created", at.date(), webhook_months)
        await months.forget(door.transaction, "webhooks", "created", at.date(), webhook_months)
        await refreshes.forget(door.transaction, at - KEEP_REFRESHES)

    return Job("retention", "40 4 * * *", run)
