"""Fetches what was hinted at, and applies it."""

import logging
from collections.abc import Sequence
from typing import Final

from services.payment.ports import Stripe
from services.payment.service.refresh import Refresh
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.errors import OpenbellError, Permanent, Transient
from shared.messaging.door import Door
from shared.work import Performed, Policy, Settled, Work, explain, one_by_one

_log = logging.getLogger(__name__)

MAX_ATTEMPTS: Final = 12
"""Half an hour with the default waits; the sweep begins anew with what is still not applied."""


class Refreshing:
    """Performs refreshes. Repeating one does no harm, so nothing about it is ever in doubt."""

    def __init__(self, stripe: Stripe, refresh: Refresh, door: Door) -> None:
        self._stripe = stripe
        self._refresh = refresh
        self._door = door

    def work(self, concurrency: int) -> Work:
        """Return the work."""
        return Work(
            kind="refresh",
            table="refreshes",
            prepare=self.prepare,
            perform=self.perform,
            on_unknown="resend",
            settled=one_by_one(self.settled),
            policy=Policy(concurrency=concurrency, max_attempts=MAX_ATTEMPTS),
        )

    async def prepare(self, row: Row) -> Row:
        """Read the row again: its token, and the hints that this fetch will answer."""
        async with self._door.read() as tx:
            found = await self._refresh.claimed(tx, row)
        if found is None:
            raise Permanent("the row is gone")
        return found

    async def perform(self, row: Row) -> Performed:
        """Ask Stripe, with no transaction open; then apply what it says in one."""
        told = await self._stripe.fetch(row["kind"], row["object_id"])

        async def apply(tx: Tx) -> Sequence[Event]:
            return await self._refresh.apply(tx, row, told)

        try:
            await self._door.publish(apply)
        except OpenbellError as error:
            await self._ask_for(error.details.get("customer"))
            raise
        except Exception as error:
            _log.exception("payment.not_applied", extra={"kind": row["kind"], "id": row["object_id"]})
            raise Transient(explain(error)) from error
        return Performed({"wanted": row["wanted"]})

    async def _ask_for(self, customer: object) -> None:
        """Fetch the customer that an object waits for: of one that was deleted long ago nobody else would tell."""
        if isinstance(customer, str):
            async with self._door.transaction() as tx:
                await self._refresh.want(tx, [("customer", customer)])

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Ask again when a hint came meanwhile."""
        return await self._refresh.settled(settled, tx)
