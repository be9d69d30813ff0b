"""Where and when: of what rings, the deliveries. Nothing else adds delivery rows.

A delivery's id follows from what rings and where it goes, so what rings twice is told once. What is not told, or not at
once, is a row too, with its reason: the log answers why.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from services.alerts.domain.grouping import grouping_of
from services.alerts.domain.matching import Change
from services.alerts.domain.routing import (
    ACTIVITY,
    Decision,
    Ring,
    Used,
    Wishes,
    escalates_after,
    in_turn,
    plan,
    unwanted,
)
from services.alerts.domain.states import end_of
from services.alerts.service.outcomes import told_of
from services.alerts.store.deliveries import Audience, DeliveryStore, ring_of
from services.alerts.store.digests import DigestStore
from services.alerts.store.escalations import EscalationStore
from services.alerts.store.groups import GroupStore, Joining
from services.alerts.store.inhibitions import firing_of, inhibitions_of
from services.alerts.store.mail import MailStore
from services.alerts.store.preferences import choices_of
from services.alerts.store.silences import silences_of
from shared.contracts.alerts import Channel, DeliverySettled
from shared.contracts.base import Event, derived_id
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
    account: UUID | None = None


@dataclass(frozen=True, slots=True)
class _Call:
    """What rings, whose it is, and what its delivery rows say of it; `seed` and `name` make their ids.

    With a channel that it is handed on `after` it is told by those whose turn comes then, `because` of what. What is
    `escalated` stops when its user acknowledges it. What rings `alone` joins no group.
    """

    user_id: UUID
    ring: Ring
    seed: UUID
    name: str
    row: dict[str, Any]
    after: str | None = None
    because: str | None = None
    escalated: bool = False
    alone: bool = False


LOST: Final = frozenset({"failed", "unknown"})
"""Ends of a delivery that did not arrive, or that nobody knows of after the last attempt."""


class Router:
    """Plans deliveries, for many users in a constant number of statements."""

    def __init__(self, store: DeliveryStore, offered: Sequence[Channel], *, wake: Callable[[], None]) -> None:
        self._store = store
        self._escalations, self._groups, self._digests = EscalationStore(), GroupStore(), DigestStore()
        self._mail = MailStore()
        self._offered = tuple(offered)
        self._wake = wake

    async def ring_alerts(self, ringing: Sequence[Change], now: datetime, tx: Tx, *, bulk: bool) -> list[Event]:
        """Write a delivery for each target of each alert's user; tell of those that end here.

        Those that are `bulk` go out after all that are not; whoever raises them says when.
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
        if (added := await self._store.add_of_alerts(tx, rows, now)) and not bulk:
            tx.after_commit(self._wake)
        causes = {change.alert_id: change.cause for change in ringing}
        ended = [row for row in rows if row["id"] in added and row["settled_at"] is not None]
        return [_settled(row, causes[row["alert_id"]].time) for row in ended]

    async def ring_notices(self, ringing: Sequence[NoticeRing], now: datetime, tx: Tx, *, alone: bool = False) -> None:
        """Write a delivery for each target of each notice's user; what is not `alone` may join a group."""
        calls = [
            _Call(
                one.user_id,
                Ring(one.kind, one.symbol, one.rule_id, one.account),
                one.notice_id,
                "1",
                {"notice_id": one.notice_id},
                alone=alone,
            )
            for one in ringing
        ]
        if await self._store.add_of_notices(tx, await self._planned(calls, now, tx), now):
            tx.after_commit(self._wake)

    async def ended(self, ends: Sequence[Settled], tx: Tx) -> list[Event]:
        """Tell how deliveries ended, and hand on what did not arrive, in the transaction of their end.

        A mail may have come back before its taking was recorded: it failed.
        """
        taken = [end.row["id"] for end in ends if end.status == "done" and end.row["channel"] == "email"]
        lost = await self._mail.lost(tx, taken)
        for delivery_id, why in lost.items():
            await self._mail.fail(tx, delivery_id, why)
        found = [
            replace(end, status="failed", detail=lost[end.row["id"]], result={}) if end.row["id"] in lost else end
            for end in ends
        ]
        return [*told_of(found), *await self.hand_on(found, tx)]

    async def hand_on(self, ends: Sequence[Settled], tx: Tx) -> list[Event]:
        """Let what did not arrive be told by the channel whose turn is next, once, in the transaction of its end.

        What its user does not want any more ends, and what has rung again since is told by that ring. What a digest
        held that reaches nobody is told by the next one.
        """
        lost = [end for end in ends if end.status in LOST and not isinstance(end.error, Withdrawn)]
        events: list[Event] = []
        if lost:
            rings = await self._store.rang(tx, [end.row for end in lost])
            calls = [
                _after(end.row, rings[end.row["id"]], f"{end.row['channel']} did not take it: {end.detail}")
                for end in lost
                if end.row["id"] in rings
            ]
            events = await self._tell_on(calls, lost[0].at, tx)
        unheard = {end.row["notice_id"] for end in ends if end.status != "done" and "notice_id" in end.row}
        if unheard:
            await self._digests.give_back(tx, sorted(unheard))
        return events

    async def escalate(self, steps: Sequence[Row], now: datetime, tx: Tx) -> list[Event]:
        """Let what its user has not acknowledged in time be told by the channel whose turn is next.

        What has rung again since escalates by that ring.
        """
        rings = await self._escalations.open(tx, steps)
        calls = [
            replace(_after(step, rings[step["id"]], _unacknowledged(step)), escalated=True)
            for step in steps
            if step["id"] in rings
        ]
        return await self._tell_on(calls, now, tx)

    async def _tell_on(self, calls: Sequence[_Call], now: datetime, tx: Tx) -> list[Event]:
        rows = await self._planned(calls, now, tx)
        of_alerts, of_notices = _split(rows)
        added = await self._store.add_of_alerts(tx, of_alerts, now)
        if await self._store.add_of_notices(tx, of_notices, now) or added:
            tx.after_commit(self._wake)
        return [_settled(row, now) for row in of_alerts if row["id"] in added and row["settled_at"] is not None]

    async def audience_of(self, user_id: UUID, now: datetime, tx: Tx) -> Audience | None:
        """Return what a user wants and where; None for one without a target."""
        return (await self._store.audience(tx, [user_id], self._offered, now)).get(user_id)

    async def ring_item(self, item: Row, now: datetime, tx: Tx) -> list[Event]:
        """Tell one that waited in a group by itself."""
        return await self._tell_on([_of_item(item)], now, tx)

    async def withhold(self, held: Sequence[tuple[Row, str]], now: datetime, tx: Tx) -> list[Event]:
        """Write why those of one user that waited in a group are not told by themselves, where they would have been."""
        user = await self.audience_of(held[0][0]["user_id"], now, tx) if held else None
        if user is None:
            return []
        channels = {target["channel"] for target in user.targets}
        told = (channels - set(user.wishes.turns)) | set(in_turn(user.wishes.turns, channels)[:1])
        rows = [
            _row(_of_item(item), target, Decision("suppressed", now, reason), now)
            for item, reason in held
            for target in user.targets
            if target["channel"] in told
        ]
        of_alerts, of_notices = _split(rows)
        added = await self._store.add_of_alerts(tx, of_alerts, now)
        await self._store.add_of_notices(tx, of_notices, now)
        return [_settled(row, now) for row in of_alerts if row["id"] in added]

    async def ring_target(self, notice_id: UUID, target: Row, now: datetime, tx: Tx) -> UUID:
        """Write a delivery of a notice to one target, now and whatever its user wishes; return its id."""
        delivery_id = derived_id(notice_id, f"delivery/{target['lane']}/1")
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
        audience = await self._store.audience(tx, list({call.user_id for call in calls}), self._offered, now)
        heard: list[tuple[_Call, Audience]] = []
        joining: list[Joining] = []
        for call in calls:
            if (user := audience.get(call.user_id)) is None:
                continue
            if (joins := _joins(call, user)) is not None:
                joining.append(joins)
            else:
                heard.append((call, user))
        # Before the lock below: a group's message takes the two in this order.
        await self._groups.join(tx, joining, now)
        capped = sorted({call.user_id for call, user in heard if user.wishes.caps})
        used = await self._store.used(tx, capped, now) if capped else {}
        rows: list[dict[str, Any]] = []
        steps: list[dict[str, Any]] = []
        for call, user in heard:
            told = _told(call, user, used[call.user_id] if user.wishes.caps else Counter(), now)
            rows += told
            steps += _next_step(call, told, user)
        await self._escalations.add(tx, steps, now)
        if joining or steps:
            tx.after_commit(self._wake)
        return rows


def _told(call: _Call, user: Audience, used: Used, now: datetime) -> list[dict[str, Any]]:
    """Return the rows for one user: of the channels that take turns, those up to the first where it is wanted."""
    targets: dict[str, list[Row]] = defaultdict(list)
    for target in user.targets:
        targets[target["channel"]].append(target)
    at_once = [] if call.after else [channel for channel in targets if channel not in user.wishes.turns]
    rows = [_planned(call, target, user.wishes, used, now) for channel in at_once for target in targets[channel]]
    for channel in in_turn(user.wishes.turns, targets, call.after):
        tried = [_planned(call, target, user.wishes, used, now) for target in targets[channel]]
        rows += tried
        if any(row["status"] != "suppressed" for row in tried):
            break
    return rows


def _planned(call: _Call, target: Row, wishes: Wishes, used: Used, now: datetime) -> dict[str, Any]:
    return _row(call, target, plan(call.ring, target["channel"], wishes, used, now), now)


def _row(call: _Call, target: Row, decision: Decision, now: datetime) -> dict[str, Any]:
    return {
        "id": derived_id(call.seed, f"delivery/{target['lane']}/{call.name}"),
        "user_id": call.user_id,
        "channel": target["channel"],
        "lane": target["lane"],
        "status": decision.status,
        "due_at": decision.due_at,
        "planned_at": decision.due_at if decision.due_at > now else None,
        "reason": decision.reason,
        "because": call.because,
        "escalated": call.escalated,
        "settled_at": None if decision.status == "pending" else now,
        **call.row,
    }


def _joins(call: _Call, user: Audience) -> Joining | None:
    """Return the group that what rings is told with; None when it is told by itself."""
    grouping = None if call.alone or call.after else grouping_of(user.groupings, call.ring)
    if grouping is None:
        return None
    item = {"subject_id": call.row.get("alert_id") or call.row["notice_id"], **call.row}
    return Joining(call.user_id, call.ring.kind, grouping, grouping.key(call.ring), item)


def _of_item(item: Row) -> _Call:
    common: dict[str, Any] = {"alone": True}
    if item["alert_id"] is not None:
        about = {name: item[name] for name in ("session", "alert_id", "ring", "bulk")}
        return _Call(item["user_id"], ring_of(item), item["alert_id"], str(item["ring"]), about, **common)
    about = {"notice_id": item["notice_id"]}
    return _Call(item["user_id"], ring_of(item), item["notice_id"], "1", about, **common)


def _next_step(call: _Call, told: Sequence[dict[str, Any]], user: Audience) -> list[dict[str, Any]]:
    """Return when the next in turn is told, if its user does not acknowledge before what goes out now."""
    minutes = escalates_after(user.wishes.escalations, call.ring)
    goes = [row for row in told if row["status"] == "pending" and row["channel"] in user.wishes.turns]
    if minutes is None or not goes:
        return []
    channel: str = goes[0]["channel"]  # of those that take turns, one goes out
    if not in_turn(user.wishes.turns, {target["channel"] for target in user.targets}, channel):
        return []
    step: dict[str, Any] = {
        "id": derived_id(call.seed, f"escalation/{channel}/{call.name}"),
        "user_id": call.user_id,
        "channel": channel,
        "after_minutes": minutes,
        "due_at": goes[0]["due_at"] + timedelta(minutes=minutes),
    }
    about = ("alert_id", "session", "ring", "notice_id")
    return [step | {name: call.row.get(name) for name in about}]


def _after(row: Row, ring: Ring, because: str) -> _Call:
    """Return the same call as a delivery or an escalation was of, for the channels after its own."""
    common: dict[str, Any] = {"after": row["channel"], "because": because, "escalated": row.get("escalated", False)}
    if row.get("alert_id") is not None:
        about = {name: row[name] for name in ("session", "alert_id", "ring")} | {"bulk": row.get("bulk", False)}
        return _Call(row["user_id"], ring, row["alert_id"], str(row["ring"]), about, **common)
    return _Call(row["user_id"], ring, row["notice_id"], "1", {"notice_id": row["notice_id"]}, **common)


def _unacknowledged(step: Row) -> str:
    minutes = "1 minute" if step["after_minutes"] == 1 else f"{step['after_minutes']} minutes"
    return f"not acknowledged on {step['channel']} within {minutes}"


def _split(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    of_alerts = [row for row in rows if "alert_id" in row]
    return of_alerts, [row for row in rows if "alert_id" not in row]


def still_wanted(found: Row, kind: str, now: datetime) -> None:
    """Raise Withdrawn for a delivery that its user has switched off, silenced or inhibited since it was planned.

    An escalation that they have acknowledged is one, too.
    """
    if found["escalated"] and found["acknowledged_at"] is not None:
        raise Withdrawn("you acknowledged it before")
    wishes = Wishes(
        choices=choices_of(found["choices"]),
        silences=silences_of(found["silences"]),
        inhibitions=inhibitions_of(found["inhibitions"]),
        firing=firing_of(found["firing"]),
    )
    held = unwanted(Ring(kind, found["symbol"], found["rule_id"], found["account_id"]), found["channel"], wishes, now)
    if held is not None:
        raise Withdrawn(held.reason or "", end="digested" if held.status == "digested" else "suppressed")


def _settled(row: dict[str, Any], at: datetime) -> DeliverySettled:
    return DeliverySettled(
        id=derived_id(row["id"], "settled"),
        time=at,
        delivery_id=row["id"],
        alert_id=row["alert_id"],
        user_id=row["user_id"],
        channel=row["channel"],
        status=end_of(row["status"]),
        attempts=0,
        detail=row["reason"] or "",
    )
