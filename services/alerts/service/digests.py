"""Digests: who wants them, which are due, and what they say.

Planning moves a user on and writes the digest's row in one transaction, and the row's id follows from user, kind and
period; making one collects its sections, keeps them and rings in one transaction. So whatever stops in the middle, each
user has one digest a period.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Literal
from uuid import UUID

from services.alerts.domain.periods import Plan, begin, digest_id, following, period, zone_of
from services.alerts.domain.routing import Ring, Wishes, hushed
from services.alerts.domain.text import SIMULATED_MARK
from services.alerts.domain.words import Words
from services.alerts.service.routing import NoticeRing, Router
from services.alerts.service.sections import SECTIONS, Asked, Section
from services.alerts.store.digests import DigestStore
from services.alerts.store.notices import NoticeStore
from shared.clock import Clock
from shared.contracts.alerts import NoticeRaised
from shared.contracts.api import UserSettingsChanged
from shared.contracts.base import Event, derived_id
from shared.db import Row, Tx
from shared.errors import Conflict
from shared.messaging.door import Done, Door
from shared.work import Performed, Policy, Work

PAGE: Final = 500
GRACE: Final = timedelta(seconds=60)
"""From the end of a period to its digest, for what is still on its way."""

Choice = Literal["off", "daily", "weekly"]


@dataclass(frozen=True, slots=True)
class Wish:
    """When a user wants digests, as they say it."""

    frequency: Choice = "off"
    hour: int = 8
    weekday: int = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is in force."""

    wish: Wish
    timezone: str
    next_due_at: datetime | None


class Digests:
    """Use cases of digests."""

    def __init__(
        self,
        store: DigestStore,
        notices: NoticeStore,
        router: Router,
        door: Door,
        *,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self._store = store
        self._notices = notices
        self._router = router
        self._door = door
        self._clock = clock
        self._wake = wake

    # What users ask for

    async def chosen(self, user_id: UUID, tx: Tx) -> Chosen:
        """Return when a user gets digests."""
        row = await self._store.plan(tx, user_id)
        if row is None:
            return Chosen(Wish(), zone_of((await self._store.reads(tx, user_id))["timezone"]), None)
        wish = Wish(row["frequency"], row["hour"], row["weekday"])
        return Chosen(wish, zone_of(row["timezone"]), row["next_due_at"])

    async def choose(self, user_id: UUID, wish: Wish, tx: Tx) -> Done[Chosen]:
        """Keep when a user wants digests. The next one begins where the last one ended, if there was one.

        Raises Conflict for none, where their preferences hold things back for it.
        """
        now, row = self._clock(), await self._store.plan(tx, user_id)
        if wish.frequency == "off" and row is not None and row["holds_back"]:
            raise Conflict("your preferences hold things back for the digest: change those choices and limits first")
        zone = zone_of((row or await self._store.reads(tx, user_id))["timezone"])
        covered: datetime | None = row["covered_until"] if row else None
        due: datetime | None = None
        if wish.frequency != "off":
            plan = Plan(wish.frequency, wish.hour, wish.weekday, zone)
            if row is None or row["next_due_at"] is None or covered is None:
                covered = begin(plan, covered, now)
            due = following(plan, covered, now)
        await self._store.choose(
            tx,
            user_id=user_id,
            frequency=wish.frequency,
            hour=wish.hour,
            weekday=wish.weekday,
            covered_until=covered,
            next_due_at=due,
        )
        return Done(Chosen(wish, zone, due))

    async def note_wishes(self, user_id: UUID, wishes: Wishes, tx: Tx) -> None:
        """Give who wants things held back a daily one, unless there is one. Their zone may have moved."""
        row = await self._store.plan(tx, user_id)
        if wishes.hold_back and (row is None or row["frequency"] == "off"):
            await self.choose(user_id, Wish("daily"), tx)
        else:
            await self.moved(user_id, tx)

    async def note_settings(self, event: UserSettingsChanged, tx: Tx) -> Sequence[Event]:
        """Move a user's next digest to where it belongs in their time zone, which may be another one now."""
        await self.moved(event.user_id, tx, settings=event.timezone)
        return ()

    async def moved(self, user_id: UUID, tx: Tx, settings: str | None = None) -> None:
        """The same, when their preferences have changed; `settings` is the zone of their settings, where just told."""
        row = await self._store.plan(tx, user_id)
        if row is not None and row["next_due_at"] is not None:
            zone = row["own_timezone"] or settings or row["timezone"]
            due = following(_plan(row, zone), row["covered_until"], self._clock())
            moved = {"user_id": user_id, "covered_until": row["covered_until"], "next_due_at": due}
            await self._store.move(tx, [moved])

    # What the clock asks for

    async def plan(self, at: datetime) -> None:
        """Write the digests that are due, page by page; running again changes nothing."""
        del at  # a late run plans what is due now
        while await self._plan_page():
            pass

    async def _plan_page(self) -> bool:
        async with self._door.transaction() as tx:
            now = self._clock()
            rows = await self._store.due(tx, now, PAGE)
            digests: list[dict[str, Any]] = []
            moved: list[dict[str, Any]] = []
            for row in rows:
                plan, covered = _plan(row, row["timezone"]), row["covered_until"]
                if (found := period(plan, covered, now)) is not None:
                    covered = found.until
                    digests.append(
                        {
                            "id": digest_id(row["user_id"], plan, found),
                            "user_id": row["user_id"],
                            "frequency": plan.frequency,
                            "since": found.since,
                            "until": found.until,
                            "due_at": found.until + GRACE,
                        }
                    )
                due = following(plan, covered, now)
                moved.append({"user_id": row["user_id"], "covered_until": covered, "next_due_at": due})
            await self._store.add(tx, digests, now)
            await self._store.move(tx, moved)
            tx.after_commit(self._wake)
        return len(rows) == PAGE

    # What a digest says

    def work(self) -> Work:
        """Return the work of making digests: what is unknown is made again, which changes nothing if it was made."""
        return Work(
            kind="digests",
            table="digests",
            perform=self._perform,
            on_unknown="resend",
            policy=Policy(concurrency=2, max_attempts=20, max_age_s=86_400.0),
        )

    async def _perform(self, row: Row) -> Performed:
        await self._door.publish(lambda tx: self.make(row["id"], tx))
        return Performed()

    async def make(self, wanted: UUID, tx: Tx) -> Sequence[Event]:
        """Collect a digest and ring; one that was made stays as it is, and one that says nothing is not sent."""
        row = await self._store.digest(tx, wanted)
        if row is None or row["sections"] is not None:
            return ()
        reads = await self._store.reads(tx, row["user_id"])
        words = Words(reads["locale"], zone_of(reads["timezone"]))
        now, kind = self._clock(), f"digest.{row['frequency']}"
        reader = await self._router.audience_of(row["user_id"], now, tx)
        silenced = reader is not None and hushed(Ring(kind), reader.wishes, now) is not None
        asked = Asked(row["id"], row["user_id"], row["since"], row["until"], silenced)
        sections = [one.render(found, words) for one in SECTIONS if (found := await one.collect(tx, asked))]
        await self._store.collected(tx, wanted, [_kept(section) for section in sections])
        if sections:
            notice: dict[str, Any] = {
                "notice_id": wanted,
                "user_id": row["user_id"],
                "kind": kind,
                "title": title(row, sections, words),
                "lines": [line for section in sections for line in (f"{section.title}:", *section.lines)],
                "at": row["until"],
                "rule_id": None,
            }
            await self._notices.add(tx, [notice], now)
            await self._router.ring_notices([NoticeRing(wanted, row["user_id"], kind)], now, tx)
            told = {key: notice[key] for key in ("notice_id", "user_id", "kind", "title", "lines", "at")}
            return [NoticeRaised(id=derived_id(wanted, NoticeRaised.type), time=row["until"], **told)]
        return ()


def title(row: Row, sections: Sequence[Section], words: Words) -> str:
    """Return a digest in one line."""
    mark = SIMULATED_MARK if any(section.simulated for section in sections) else ""
    return f"{mark}Your {row['frequency']} digest, {words.day(row['until'])}"


def _plan(row: Row, zone: str) -> Plan:
    return Plan(row["frequency"], row["hour"], row["weekday"], zone_of(zone))


def _kept(section: Section) -> dict[str, Any]:
    shows = None if section.shows is None else str(section.shows)
    return {"title": section.title, "lines": section.lines, "simulated": section.simulated, "shows": shows}
