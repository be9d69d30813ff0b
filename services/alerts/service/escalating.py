"""What nobody acknowledges in time goes to the channel whose turn is next.

What would surprise you: performing does nothing. Handing on is a change of our own rows alone, so it happens in the
transaction that records the end: once, whoever dies where.
"""

from collections.abc import Sequence

from services.alerts.service.routing import Router
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.work import Performed, Policy, Settled, Work


class Escalating:
    """Hands on what waits for somebody to acknowledge it, when its time comes."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def work(self) -> Work:
        """Return the work: what is unknown changed nothing, and is done again."""
        return Work(
            kind="escalation",
            table="escalations",
            perform=self.perform,
            on_unknown="resend",
            settled=self.settled,
            policy=Policy(concurrency=8, max_attempts=1000, max_age_s=7 * 86_400.0),
        )

    async def perform(self, _row: Row) -> Performed:
        """Do nothing: its end does it."""
        return Performed()

    async def settled(self, ends: Sequence[Settled], tx: Tx) -> Sequence[Event]:
        """Hand on; tell of the deliveries that end here."""
        done = [end for end in ends if end.status == "done"]
        return await self._router.escalate([end.row for end in done], done[0].at, tx) if done else []
