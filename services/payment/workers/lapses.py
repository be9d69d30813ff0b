"""Tells whose access has ended by the clock."""

from datetime import datetime

from services.payment.service.subscriptions import Subscriptions
from shared.messaging.door import Door
from shared.schedule import Job


def lapses(subscriptions: Subscriptions, door: Door) -> Job:
    """Return the job that tells, each minute, whose access has ended by the clock."""

    async def run(at: datetime) -> None:
        del at
        await door.publish(subscriptions.lapse)

    return Job("lapses", "* * * * *", run)
