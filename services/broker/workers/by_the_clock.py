"""What the clock asks for: orders of which nothing is heard are looked up."""

import logging
from datetime import datetime, timedelta

from services.broker.service.reconcile import Reconcile
from shared.schedule import Job

_log = logging.getLogger(__name__)


def sweeps(reconcile: Reconcile, quiet_s: float) -> Job:
    """Return the job that finds stuck, unknown and vanished orders, each minute."""

    async def sweep(at: datetime) -> None:
        del at
        if found := await reconcile.sweep(timedelta(seconds=quiet_s)):
            _log.info("broker.orders_looked_up", extra={"orders": found})

    return Job("order-sweep", "* * * * *", sweep)
