"""Groups are told: what rang together in one message, what rang alone by itself.

What would surprise you: performing does nothing. Telling is a change of our own rows alone, so it happens in the
transaction that records a bundle's end: once, whoever dies where.
"""

from collections.abc import Sequence
from datetime import datetime

from services.alerts.domain.grouping import lines_of, title_of
from services.alerts.domain.routing import Wishes, hushed
from services.alerts.service.routing import NoticeRing, Router
from services.alerts.store.deliveries import ring_of
from services.alerts.store.groups import GroupStore
from services.alerts.store.notices import NoticeStore
from shared.contracts.alerts import NoticeRaised
from shared.contracts.base import Event, derived_id
from shared.db import Row, Tx
from shared.work import Performed, Policy, Settled, Work, one_by_one


class Bundling:
    """Tells bundles when their time comes."""

    def __init__(self, router: Router, notices: NoticeStore) -> None:
        self._router = router
        self._notices = notices
        self._groups = GroupStore()

    def work(self) -> Work:
        """Return the work: what is unknown changed nothing, and is done again."""
        return Work(
            kind="bundle",
            table="bundles",
            perform=self.perform,
            on_unknown="resend",
            settled=one_by_one(self.settled),
            policy=Policy(concurrency=8, max_attempts=1000, max_age_s=7 * 86_400.0),
        )

    async def perform(self, _row: Row) -> Performed:
        """Do nothing: its end does it."""
        return Performed()

    async def settled(self, end: Settled, tx: Tx) -> Sequence[Event]:
        """Tell what a bundle holds and is wanted still; plan when it is told again."""
        bundle, now = end.row, end.at
        group = await self._groups.group(tx, bundle["group_id"])
        user = await self._router.audience_of(bundle["user_id"], now, tx)
        if group is None:
            return ()
        first = bundle["again_of"]
        wanted: list[Row] = []
        held: list[tuple[Row, str]] = []
        if user is not None and (first is None or not await self._groups.seen(tx, first)):
            wanted, held = _judged(await self._groups.items(tx, first or bundle["id"]), user.wishes, now)
        events: list[Event] = []
        if first is None and len(wanted) == 1:
            events += await self._router.ring_item(wanted[0], now, tx)
        elif wanted:
            events.append(await self._tell(group, bundle, wanted, now, tx))
            held += [(item, f"told in one message of {len(wanted)}") for item in wanted]
        if first is None:
            events += await self._router.withhold(held, now, tx)
        await self._groups.flushed(tx, bundle, now if wanted else group["flushed_at"], now)
        if wanted and bundle["repeat_s"] is not None:
            await self._groups.repeat(tx, group, bundle, now)
        return events

    async def _tell(self, group: Row, bundle: Row, items: Sequence[Row], now: datetime, tx: Tx) -> Event:
        notice_id, user_id, kind, symbol = bundle["id"], bundle["user_id"], group["kind"], group["key"] or None
        titles = [item["title"] for item in items]
        told = NoticeRaised(
            id=derived_id(notice_id, NoticeRaised.type),
            time=now,
            notice_id=notice_id,
            user_id=user_id,
            kind=kind,
            title=title_of(kind, group["key"], titles, again=bundle["again_of"] is not None),
            lines=lines_of(titles),
            at=now,
        )
        about = {"notice_id": notice_id, "user_id": user_id, "kind": kind, "rule_id": None, "symbol": symbol}
        await self._notices.add(tx, [{**about, "title": told.title, "lines": list(told.lines), "at": now}], now)
        await self._router.ring_notices([NoticeRing(notice_id, user_id, kind, symbol)], now, tx, alone=True)
        return told


def _judged(items: Sequence[Row], wishes: Wishes, now: datetime) -> tuple[list[Row], list[tuple[Row, str]]]:
    """Return what is still wanted, and what is not with its reason; what has rung again is told by that ring."""
    wanted: list[Row] = []
    held: list[tuple[Row, str]] = []
    for item in items:
        if item["notifications"] is not None and item["notifications"] > item["ring"]:
            continue
        if item["acknowledged_at"] is not None:
            held.append((item, "you acknowledged it before"))
        elif (decision := hushed(ring_of(item), wishes, now)) is not None:
            held.append((item, decision.reason or ""))
        else:
            wanted.append(item)
    return wanted, held
