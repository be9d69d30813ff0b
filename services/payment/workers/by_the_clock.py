"""Renewals, reminders and invariants."""

from services.payment.service.invariants import Invariants
from services.payment.service.renewals import Reminders, Renewals
from shared.schedule import Job


def by_the_clock(renewals: Renewals, reminders: Reminders, invariants: Invariants) -> list[Job]:
    """Return their jobs. Times are UTC; runs that were missed are made up for by one."""
    return [
        Job("renewals", "0 0 * * *", renewals.run),
        Job("reminders", "5,20,35,50 * * * *", reminders.run),
        Job("invariants", "*/15 * * * *", invariants.run),
    ]
