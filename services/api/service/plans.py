"""What users have paid for, as the payment service tells it.

A route that asks for an entitlement says so in its decorator, a forwarded one in its rule: `plan="pro"`.

What would surprise you: what was read of a user holds for half a second, so that an answer may be that much older than
what was heard. Administrators need no plan.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from services.api import store
from shared.clock import Clock
from shared.contracts.base import Event
from shared.contracts.payment import SubscriptionChanged
from shared.db import Database, Tx
from shared.errors import PlanRequired
from shared.identity import Identity

HELD_S: Final = 0.5
REMEMBERED: Final = 20_000

_Granted = tuple[tuple[frozenset[str], datetime | None], ...]


class Plans:
    """Keeps subscriptions as they are told, and says who may use what."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._known: dict[UUID, tuple[float, _Granted]] = {}

    async def record(self, events: Sequence[SubscriptionChanged], tx: Tx) -> Sequence[Event]:
        """Keep the newest state of each subscription."""
        newest = {(one.user_id, one.subscription_id): one for one in sorted(events, key=lambda one: one.version)}
        rows = [
            {
                "user_id": one.user_id,
                "subscription_id": one.subscription_id,
                "version": one.version,
                "plan": one.plan,
                "status": one.status,
                "entitlements": list(one.entitlements),
                "entitled_until": one.entitled_until,
            }
            for _, one in sorted(newest.items())
        ]
        await store.put_subscriptions(tx, rows)
        tx.after_commit(lambda: self._forget(user_id for user_id, _ in newest))
        return ()

    async def check(self, identity: Identity, entitlement: str) -> None:
        """Raise PlanRequired when the caller has not paid for the entitlement."""
        if identity.is_admin:
            return
        now = self._clock()
        known = self._known.get(identity.user_id)
        if known is None or not 0 <= now.timestamp() - known[0] < HELD_S:
            async with self._db.read() as tx:
                rows = await store.subscriptions(tx, identity.user_id)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            granted = tuple((frozenset(row["entitlements"]), row["entitled_until"]) for row in rows)
            known = self._known[identity.user_id] = (now.timestamp(), granted)
        if not any(entitlement in names and (until is None or now < until) for names, until in known[1]):
            raise PlanRequired(f"this needs a plan with {entitlement!r}: see POST /pay/checkout", plan=entitlement)

    def _forget(self, users: Iterable[UUID]) -> None:
        for user_id in users:
            self._known.pop(user_id, None)
