"""Where and when: of what rings, the deliveries. Nothing else adds delivery rows.

A delivery's id follows from what rings and where it goes, so what rings twice is told once. What is not told, or not at
once, is a row too, with its reason: the log answers why.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

from services.alerts.domain.matching import Change
from services.alerts.domain.routing import ACTIVITY, Ring, Used, Wishes, in_turn, plan, unwanted
from services.alerts.domain.states import end_of
from services.alerts.store.deliveries import Audience, DeliveryStore
from services.alerts.store.preferences import choices_of
from services.alerts.store.silences import silences_of
from shared.contracts.alerts import Channel, DeliverySettled
from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.work import Settled, Withdrawn


@dataclass(frozen=True, slots=True)
class NoticeRing:
    """A notice that is to be told."""

    notice_id: UUID
    user_id: UUID
    kind: str
    symbol: str | None = None
    rule_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """What rings, whose it is, and what its delivery rows say of it; `seed` and `name` make their ids.

    With a channel that has `failed` it is told by those whose turn comes after.
    """

    user_id: UUID
    ring: Ring
    seed: UUID
    name: str
    row: dict[str, Any]
    failed: str | None = None
    because: str | None = None


LOST: Final = frozenset({"failed", "unknown"})
"""Ends of a delivery that did not arrive, or that nobody knows of after the last attempt."""


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
        return [_settled(row, causes[row["alert_id"]].time) for row in rows if row["settled_at"] is not None]

    async def ring_notices(self, ringing: Sequence[NoticeRing], now: datetime, tx: Tx) -> None:
        """Write a delivery for each target of each notice's user."""
        calls = [
            _Call(
                one.user_id,
                Ring(one.kind, one.symbol, one.rule_id),
                one.notice_id,
                "1",
                {"notice_id": one.notice_id},
            )
            for one in ringing
        ]
        if await self._store.add_of_notices(tx, await self._planned(calls, now, tx), now):
            tx.after_commit(self._wake)

    async def hand_on(self, ends: Sequence[Settled], tx: Tx) -> list[Event]:
        """Let what did not arrive be told by the channel whose turn is next, once, in the transaction of its end.

        What its user does not want any more ends, and what has rung again since is told by that ring.
        """
        lost = [end for end in ends if end.status in LOST and not isinstance(end.error, Withdrawn)]
        if not lost:
            return []
        now, rings = lost[0].at, await self._store.rang(tx, [end.row for end in lost])
        calls = [_after(end, rings[end.row["id"]]) for end in lost if end.row["id"] in rings]
        rows = await self._planned(calls, now, tx)
        of_alerts, of_notices = _split(rows)
        added = await self._store.add_of_alerts(tx, of_alerts, now)
        if added + await self._store.add_of_notices(tx, of_notices, now):
            tx.after_commit(self._wake)
        return [_settled(row, now) for row in of_alerts if row["settled_at"] is not None]

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
            rows += _told(call, user, used[call.user_id] if user.wishes.caps else Counter(), now)
        return rows


def _told(call: _Call, user: Audience, used: Used, now: datetime) -> list[dict[str, Any]]:
    """Return the rows for one user: of the channels that take turns, those up to the first where it is wanted."""
    targets: dict[str, list[Row]] = defaultdict(list)
    for target in user.targets:
        targets[target["channel"]].append(target)
    at_once = [] if call.failed else [channel for channel in targets if channel not in user.wishes.turns]
    rows = [_planned(call, target, user.wishes, used, now) for channel in at_once for target in targets[channel]]
    for channel in in_turn(user.wishes.turns, targets, call.failed):
        tried = [_planned(call, target, user.wishes, used, now) for target in targets[channel]]
        rows += tried
        if any(row["status"] != "suppressed" for row in tried):
            break
    return rows


def _planned(call: _Call, target: Row, wishes: Wishes, used: Used, now: datetime) -> dict[str, Any]:
    decision = plan(call.ring, target["channel"], wishes, used, now)
    return {
        "id": uuid5(call.seed, f"delivery/{target['lane']}/{call.name}"),
        "user_id": call.user_id,
        "channel": target["channel"],
        "lane": target["lane"],
        "status": decision.status,
        "due_at": decision.due_at,
        "planned_at": decision.due_at if decision.due_at > now else None,
        "reason": decision.reason,
        "because": call.because,
        "settled_at": None if decision.status == "pending" else now,
        **call.row,
    }


def _after(end: Settled, ring: Ring) -> _Call:
    row, because = end.row, f"{end.row['channel']} did not take it: {end.detail}"
    if "alert_id" in row:
        about = {name: row[name] for name in ("session", "alert_id", "ring", "bulk")}
        return _Call(row["user_id"], ring, row["alert_id"], str(row["ring"]), about, row["channel"], because)
    return _Call(row["user_id"], ring, row["notice_id"], "1", {"notice_id": row["notice_id"]}, row["channel"], because)


def _split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    of_alerts = [row for row in rows if "alert_id" in row]
    return of_alerts, [row for row in rows if "alert_id" not in row]


def still_wanted(found: Row, kind: str, now: datetime) -> None:
    """Raise Withdrawn for a delivery that its user has switched off or silenced since it was planned."""
    wishes = Wishes(choices=choices_of(found["choices"]), silences=silences_of(found["silences"]))
    held = unwanted(Ring(kind, found["symbol"], found["rule_id"]), found["channel"], wishes, now)
    if held is not None:
        raise Withdrawn(held.reason or "", end="digested" if held.status == "digested" else "suppressed")


def _settled(row: dict[str, Any], at: datetime) -> DeliverySettled:
    return DeliverySettled(
        id=uuid5(row["id"], "settled"),
        time=at,
        delivery_id=row["id"],
        alert_id=row["alert_id"],
        user_id=row["user_id"],
        channel=row["channel"],
        status=end_of(row["status"]),
        attempts=0,
        detail=row["reason"] or "",
    )
