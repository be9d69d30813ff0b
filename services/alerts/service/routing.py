"""Where and when: of what rings, the deliveries. Nothing else adds delivery rows.

A delivery's id follows from what rings and where it goes, so what rings twice is told once. What is not told, or not at
once, is a row too, with its reason: the log answers why.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from services.alerts.domain.matching import Cause, Change
from services.alerts.domain.routing import ACTIVITY, Ring, plan
from services.alerts.domain.states import end_of
from services.alerts.store.deliveries import DeliveryStore
from shared.contracts.alerts import Channel, DeliverySettled
from shared.contracts.base import Event
from shared.db import Row, Tx


@dataclass(frozen=True, slots=True)
class NoticeRing:
    """A notice that is to be told."""

    notice_id: UUID
    user_id: UUID
    kind: str


@dataclass(frozen=True, slots=True)
class _Call:
    """What rings, whose it is, and what its delivery rows say of it; `seed` and `name` make their ids."""

    user_id: UUID
    ring: Ring
    seed: UUID
    name: str
    row: dict[str, Any]


class Router:
    """Plans deliveries, for many users in a constant number of statements."""

    def __init__(self, store: DeliveryStore, offered: Sequence[Channel], *, wake: Callable[[], None]) -> None:
        self._store = store
        self._offered = tuple(offered)
        self._wake = wake

    async def ring_alerts(self, ringing: Sequence[Change], now: datetime, tx: Tx, *, bulk: bool) -> list[Event]:
        """Write a delivery for each target of each alert's user; tell of those that end here.

        Those that are `bulk` go out after all that are not.
        """
        calls = [
            _Call(
                change.rule.user_id,
                Ring(ACTIVITY, change.symbol, change.rule.rule_id),
                change.alert_id,
                str(change.notifications),
                {"session": change.session, "alert_id": change.alert_id, "ring": change.notifications, "bulk": bulk},
            )
            for change in ringing
        ]
        rows = await self._planned(calls, now, tx)
        if await self._store.add_of_alerts(tx, rows, now):
            tx.after_commit(self._wake)
        causes = {change.alert_id: change.cause for change in ringing}
        return [_settled(row, causes[row["alert_id"]]) for row in rows if row["settled_at"] is not None]

    async def ring_notices(self, ringing: Sequence[NoticeRing], now: datetime, tx: Tx) -> None:
        """Write a delivery for each target of each notice's user."""
        calls = [
            _Call(one.user_id, Ring(one.kind), one.notice_id, "1", {"notice_id": one.notice_id}) for one in ringing
        ]
        if await self._store.add_of_notices(tx, await self._planned(calls, now, tx), now):
            tx.after_commit(self._wake)

    async def ring_target(self, notice_id: UUID, target: Row, now: datetime, tx: Tx) -> UUID:
        """Write a delivery of a notice to one target, now and whatever its user wishes; return its id."""
        delivery_id = uuid5(notice_id, f"delivery/{target['lane']}/1")
        row = {
            "id": delivery_id,
            "notice_id": notice_id,
            "user_id": target["user_id"],
            "channel": target["channel"],
            "lane": target["lane"],
            "status": "pending",
            "due_at": now,
        }
        await self._store.add_of_notices(tx, [row], now)
        tx.after_commit(self._wake)
        return delivery_id

    async def _planned(self, calls: Sequence[_Call], now: datetime, tx: Tx) -> list[dict[str, Any]]:
        if not calls:
            return []
        audience = await self._store.audience(tx, sorted({call.user_id for call in calls}), self._offered, now)
        capped = [user_id for user_id, one in audience.items() if one.wishes.caps]
        used = await self._store.used(tx, capped, now) if capped else {}
        rows: list[dict[str, Any]] = []
        for call in calls:
            if (user := audience.get(call.user_id)) is None:
                continue
            told = used[call.user_id] if user.wishes.caps else Counter()
            for target in user.targets:
                decision = plan(call.ring, target["channel"], user.wishes, told, now)
                rows.append(
                    {
                        "id": uuid5(call.seed, f"delivery/{target['lane']}/{call.name}"),
                        "user_id": call.user_id,
                        "channel": target["channel"],
                        "lane": target["lane"],
                        "status": decision.status,
                        "due_at": decision.due_at,
                        "planned_at": decision.due_at if decision.due_at > now else None,
                        "reason": decision.reason,
                        "settled_at": None if decision.status == "pending" else now,
                        **call.row,
                    }
                )
        return rows


def _settled(row: dict[str, Any], cause: Cause) -> DeliverySettled:
    return DeliverySettled(
        id=uuid5(row["id"], "settled"),
        time=cause.time,
        delivery_id=row["id"],
        alert_id=row["alert_id"],
        user_id=row["user_id"],
        channel=row["channel"],
        status=end_of(row["status"]),
        attempts=0,
        detail=row["reason"] or "",
    )
