"""Asking Stripe what is true: a hint marks an object, a worker fetches it, and what it says is applied.

Nothing is ever read out of an event but which object it names. A fetch answers the hints that came before it began;
one that comes later asks again. Appliers get what Stripe says now, any number of times, in any order of objects.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from prometheus_client import Counter

from services.payment.domain.stripe import KINDS, Object
from services.payment.store.mirror import MirrorStore
from services.payment.store.refreshes import RefreshStore
from services.payment.store.subscriptions import SubscriptionStore
from shared.clock import Clock, NewId
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.contracts.payment import WebhookReceived
from shared.db import Row, Tx
from shared.work import Settled

_log = logging.getLogger(__name__)

Applier = Callable[[Tx, Object | None, str], Awaitable[list[Event]]]
"""Takes an object as Stripe says it is now (None: it is gone) and its id; writes what follows, tells what happened."""

UNHANDLED: Final = Counter(
    "openbell_payment_webhooks_unhandled_total", "Webhooks that are kept and name nothing that we follow", ["type"]
)
APPLIED: Final = Counter("openbell_payment_objects_applied_total", "Objects that Stripe was asked for", ["kind"])
DRIFT: Final = Counter(
    "openbell_payment_drift_total", "Objects that no event had named, found by the sweep and mended", ["kind", "found"]
)  # found: missing, changed, deleted
STUCK: Final = Counter("openbell_payment_objects_stuck_total", "Objects that could not be applied", ["kind"])


class Appliers:
    """Which functions an object goes through, by its kind, in the order they were named."""

    def __init__(self) -> None:
        self._by_kind: dict[str, list[Applier]] = {kind: [] for kind in KINDS}

    def on(self, kind: str, applier: Applier) -> None:
        """Apply objects of a kind with this; raises KeyError for a kind that is not in domain.stripe.KINDS."""
        self._by_kind[kind].append(applier)

    def of(self, kind: str) -> Sequence[Applier]:
        """Return a kind's appliers."""
        return self._by_kind[kind]


class Refresh:
    """Marks what is to be fetched, and applies what came."""

    def __init__(
        self,
        refreshes: RefreshStore,
        mirror: MirrorStore,
        subscriptions: SubscriptionStore,
        appliers: Appliers,
        *,
        clock: Clock,
        new_id: NewId,
        wake: Callable[[], None],
    ) -> None:
        self._refreshes = refreshes
        self._mirror = mirror
        self._subscriptions = subscriptions
        self._appliers = appliers
        self._clock = clock
        self._new_id = new_id
        self._wake = wake

    async def note(self, webhooks: Sequence[WebhookReceived], tx: Tx) -> list[Event]:
        """Mark what webhooks name. What we do not follow is kept where it lies, and counted."""
        followed: list[tuple[str, str]] = []
        for one in webhooks:
            kind, object_id = one.object_kind, one.object_id
            if kind is not None and kind in KINDS and object_id is not None:
                followed.append((kind, object_id))
            else:
                tx.after_commit(UNHANDLED.labels(one.event_type).inc)
        await self.want(tx, followed)
        return []

    async def want(self, tx: Tx, objects: Sequence[tuple[str, str]], *, hinted: bool = True) -> None:
        """Ask for each (kind, object id) soon."""
        await self._refreshes.want(tx, objects, self._clock(), hinted=hinted)
        tx.after_commit(self._wake)

    async def claimed(self, tx: Tx, row: Row) -> Row | None:
        """Return a claimed row with all hints until now; what is fetched from now on answers them."""
        return await self._refreshes.claimed(tx, row["id"])

    async def apply(self, tx: Tx, row: Row, told: Object | None) -> list[Event]:
        """Apply what Stripe says; nothing when the row was claimed by another since."""
        if not await self._refreshes.ours(tx, row["id"], row["token"]):
            return []
        kind, object_id = str(row["kind"]), str(row["object_id"])
        change = await self._mirror.put(tx, kind, object_id, told, self._clock())
        events: list[Event] = []
        for applier in self._appliers.of(kind):
            events += await applier(tx, told, object_id)
        tx.after_commit(APPLIED.labels(kind).inc)
        if change is not None and not row["hinted"]:
            tx.after_commit(DRIFT.labels(kind, change).inc)
            _log.info("payment.drift", extra={"kind": kind, "id": object_id, "found": change})
        return events

    async def settled(self, settled: Settled, tx: Tx) -> Sequence[Event]:
        """Ask again when a hint came since the fetch began; tell of what cannot be applied, once."""
        row = settled.row
        answered = int(settled.result.get("wanted", row["wanted"]))
        if await self._refreshes.again(tx, row["id"], answered, settled.at):
            tx.after_commit(self._wake)
        if settled.status == "done":
            return []
        kind, object_id = str(row["kind"]), str(row["object_id"])
        tx.after_commit(STUCK.labels(kind).inc)
        _log.error("payment.stuck", extra={"kind": kind, "id": object_id, "why": settled.detail})
        return await self.audit(tx, "apply.stripe_object", object_id, kind=kind, why=settled.detail)

    async def audit(self, tx: Tx, action: str, subject: str, **details: object) -> list[Event]:
        """Tell the auditor of something about an object, once."""
        now = self._clock()
        if not await self._subscriptions.first_notice(tx, f"audit/{action}/{subject}", now):
            return []
        audited = ActionAudited(
            id=self._new_id(),
            time=now,
            service="payment",
            actor="system",
            action=action,
            subject=subject,
            at=now,
            details=details,
        )
        return [audited]
