"""Door 3, the clock: everybody has a customer at Stripe, and old calls are forgotten."""

from datetime import datetime

from services.payment.service.customers import Customers
from services.payment.store.calls import CallStore
from shared.messaging.door import Door
from shared.schedule import Job


def assertions(customers: Customers) -> Job:
    """Return the job that asserts, each day, that every user has exactly one customer."""
    return Job("assert-customers", "40 3 * * *", customers.assert_all)


def calls_retention(calls: CallStore, door: Door) -> Job:
    """Return the job that forgets calls of long ago."""

    async def run(at: datetime) -> None:
        await calls.forget(door.transaction, at)

    return Job("calls-retention", "50 4 * * *", run)
