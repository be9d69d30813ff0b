"""What the clock asks for: orders of which nothing is heard are looked up, and what was said long ago is forgotten."""

import logging
from datetime import datetime, timedelta
from typing import Final

from services.broker.service.reconcile import Reconcile
from services.broker.store.orders import OrderStore
from shared.messaging.door import Door
from shared.schedule import Job

LOOK_UPS: Final = timedelta(days=1)
SENDINGS: Final = timedelta(days=30)
"""So long what was said to venues is kept; their look-ups, of which there are many, only so long as LOOK_UPS."""
_log = logging.getLogger(__name__)


def sweeps(reconcile: Reconcile, quiet_s: float) -> Job:
    """Return the job that finds stuck, unknown and vanished orders, each minute."""

    async def sweep(at: datetime) -> None:
        del at
        if found := await reconcile.sweep(timedelta(seconds=quiet_s)):
            _log.info("broker.orders_looked_up", extra={"orders": found})

    return Job("order-sweep", "* * * * *", sweep)


def retention(orders: OrderStore, door: Door) -> Job:
    """Return the job that deletes what was said to venues long ago, each night."""

    async def forget(at: datetime) -> None:
        await orders.forget_sendings(door.transaction, at - LOOK_UPS, at - SENDINGS)

    return Job("sendings-retention", "49 4 * * *", forget)
