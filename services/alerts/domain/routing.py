"""Where and when something that rings is told. Pure: the time comes in, in UTC.

A user's wishes decide for each channel, in this order: a silence, an inhibition, the choice for kind and channel, quiet
hours, rate caps. Critical kinds pass quiet hours and caps; a silence and a choice hold for them as well, for the user
made them, and an inhibition that names them.

What would surprise you: quiet hours are a stretch from the first moment at which the clock on the wall shows their
start to the last at which it shows their end. An hour that a clock change repeats or leaves out makes them longer or
shorter, never leaky.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from typing import Any, Final, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

Choice = Literal["on", "off", "digest"]
Equal = Literal["symbol", "account"]
Status = Literal["pending", "suppressed", "digested"]

ANY: Final = "*"
ACTIVITY: Final = "activity"
"""The kind of alerts; those of notices are named where they are told (domain/notices.py)."""
TEST: Final = "test"
"""The kind of what a user sends to try a channel: it goes out whatever they wish."""
CRITICAL: Final = frozenset(
    {
        "dispute_opened",
        "order_flagged",
        "order_rejected",
        "payment_action_required",
        "payment_failed",
        "positions_drifted",
    }
)
DIGESTS: Final = frozenset({"digest.daily", "digest.weekly"})

_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Ring:
    """What rings: a notice or an alert of one user."""

    kind: str
    symbol: str | None = None
    rule_id: UUID | None = None
    account: UUID | None = None

    @property
    def critical(self) -> bool:
        """Whether it passes quiet hours and caps."""
        return self.kind in CRITICAL

    @property
    def digest(self) -> bool:
        """Whether it is a digest itself: no digest tells it later, and it passes caps."""
        return self.kind in DIGESTS


@dataclass(frozen=True, slots=True)
class Quiet:
    """From when until when, by the clock on the user's wall, every day. `start` is not `end`."""

    start: time
    end: time


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `per_hour` in an hour of UTC, of all that is told of a kind on a channel; either may be ANY."""

    kind: str
    channel: str
    per_hour: int

    def covers(self, kind: str, channel: str) -> bool:
        """Whether what is told counts."""
        return self.kind in {ANY, kind} and self.channel in {ANY, channel}


@dataclass(frozen=True, slots=True)
class Silence:
    """What is not told until `ends_at`: that of which everything holds that is named here; None names nothing."""

    kind: str | None
    symbol: str | None
    rule_id: UUID | None
    critical: bool | None
    ends_at: datetime

    @property
    def everything(self) -> bool:
        """Whether it names nothing, and so silences all."""
        return self.kind is None and self.symbol is None and self.rule_id is None and self.critical is None

    def covers(self, ring: Ring) -> bool:
        """Whether it silences what rings."""
        return (
            self.kind in {None, ring.kind}
            and self.symbol in {None, ring.symbol}
            and self.rule_id in {None, ring.rule_id}
            and self.critical in {None, ring.critical}
        )


@dataclass(frozen=True, slots=True)
class Firing:
    """What was last told of a kind about a symbol and an account, and nobody has acknowledged."""

    kind: str
    symbol: str | None
    account: UUID | None
    at: datetime


@dataclass(frozen=True, slots=True)
class Inhibition:
    """While `source` fires, for `minutes` from when it rang, `target` is not told where `equal` is known and the same.

    A target of ANY is every other kind that is not critical.
    """

    source: str
    target: str
    equal: tuple[Equal, ...]
    minutes: int

    def aims_at(self, kind: str) -> bool:
        """Whether it may hold a kind back. Digests tell what was held back, and tests are asked for."""
        if kind in DIGESTS or kind in {TEST, self.source}:
            return False
        return self.target == kind or (self.target == ANY and kind not in CRITICAL)

    def holds(self, firing: Firing, ring: Ring, now: datetime) -> bool:
        """Whether what fires holds back what rings."""
        return (
            firing.kind == self.source
            and self.aims_at(ring.kind)
            and now < firing.at + timedelta(minutes=self.minutes)
            and all(_same(getattr(firing, name), getattr(ring, name)) for name in self.equal)
        )


def _same(one: Any, other: Any) -> bool:
    return one is not None and one == other


def circle(inhibitions: Sequence[Inhibition]) -> list[str]:
    """Return kinds that would hold each other back, so that none of them is told; none where there are none."""
    sources = {one.source for one in inhibitions}
    graph: dict[str, set[str]] = {source: set() for source in sources}
    for one in inhibitions:
        graph[one.source] |= {kind for kind in sources if one.aims_at(kind)}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return sorted(set(error.args[1]))
    return []


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one user wants. Nothing said: everything, everywhere, at once."""

    timezone: str = "UTC"
    quiet: Quiet | None = None
    choices: Mapping[tuple[str, str], Choice] = field(default_factory=dict[tuple[str, str], Choice])
    caps: Sequence[Cap] = ()
    silences: Sequence[Silence] = ()
    """Those that are running."""
    inhibitions: Sequence[Inhibition] = ()
    firing: Sequence[Firing] = ()
    """What they may be held against."""
    turns: Sequence[str] = ()
    """Channels that take turns: the next one is told what the one before could not be."""
    escalations: Mapping[str, int] = field(default_factory=dict[str, int])
    """In how many minutes the next in turn is told what nobody acknowledged, by kind or ANY."""

    @property
    def hold_back(self) -> bool:
        """Whether something may wait for the next digest."""
        return bool(self.caps) or "digest" in self.choices.values()


Used = Counter[tuple[str, str, datetime]]
"""How many deliveries are planned, by kind, channel and hour of UTC."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one delivery. `due_at` is when it goes out, or when it was decided that it does not."""

    status: Status
    due_at: datetime
    reason: str | None = None


def plan(ring: Ring, channel: str, wishes: Wishes, used: Used, now: datetime) -> Decision:
    """Decide for one channel; what goes out is counted in `used`, for a user who has caps."""
    held = unwanted(ring, channel, wishes, now)
    if held is not None:
        return held
    due_at = now
    if wishes.quiet is not None and not ring.critical:
        due_at = quiet_until(wishes.quiet, wishes.timezone, now) or now
    if wishes.caps:
        hour = hour_of(due_at)
        for cap in () if ring.critical or ring.digest else wishes.caps:
            if cap.covers(ring.kind, channel) and _told(used, cap, hour) >= cap.per_hour:
                return Decision("digested", now, f"over your limit of {cap.per_hour} an hour")
        used[ring.kind, channel, hour] += 1
    return Decision("pending", due_at, None if due_at == now else "waits for the end of your quiet hours")


def in_turn(turns: Sequence[str], channels: Collection[str], failed: str | None = None) -> list[str]:
    """Return the channels that may be told, in turn; those behind one that `failed`, none if it takes no turns."""
    behind = list(turns)
    if failed is not None:
        behind = behind[behind.index(failed) + 1 :] if failed in behind else []
    return [channel for channel in behind if channel in channels]


def escalates_after(escalations: Mapping[str, int], ring: Ring) -> int | None:
    """Return the minutes after which the next in turn is told what nobody acknowledged; None when it stays."""
    if ring.kind == TEST or ring.digest:
        return None
    return escalations.get(ring.kind, escalations.get(ANY))


def unwanted(ring: Ring, channel: str, wishes: Wishes, now: datetime) -> Decision | None:
    """Return why its user does not want it on a channel, now; None when they do. Asked again when it goes out."""
    if ring.kind == TEST:
        return None
    if (held := hushed(ring, wishes, now)) is not None:
        return held
    choice = choice_of(wishes.choices, ring.kind, channel)
    if choice == "off":
        return Decision("suppressed", now, "switched off in your preferences")
    if choice == "digest" and not ring.digest:
        return Decision("digested", now, "your preferences say: in the digest")
    return None


def hushed(ring: Ring, wishes: Wishes, now: datetime) -> Decision | None:
    """Return why its user does not want it on any channel, now: a silence or an inhibition."""
    for silence in wishes.silences:
        if silence.covers(ring):
            return Decision("suppressed", now, f"silenced until {silence.ends_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC")
    for inhibition in wishes.inhibitions:
        for firing in wishes.firing:
            if inhibition.holds(firing, ring, now):
                return Decision("suppressed", now, _inhibited(inhibition, firing))
    return None


def _inhibited(by: Inhibition, firing: Firing) -> str:
    about = "".join(f", same {name}" for name in by.equal)
    until = (firing.at + timedelta(minutes=by.minutes)).astimezone(UTC)
    return f"held back by {by.source}{about}, until you acknowledge it or {until:%Y-%m-%d %H:%M} UTC"


def choice_of(choices: Mapping[tuple[str, str], Choice], kind: str, channel: str) -> Choice:
    """Return the choice for a kind on a channel; the nearest one wins, the kind's before the channel's."""
    for place in ((kind, channel), (kind, ANY), (ANY, channel), (ANY, ANY)):
        if place in choices:
            return choices[place]
    return "on"


def hour_of(at: datetime) -> datetime:
    """Return the hour of UTC that a moment lies in."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _told(used: Used, cap: Cap, hour: datetime) -> int:
    return sum(n for (kind, channel, at), n in used.items() if at == hour and cap.covers(kind, channel))


@lru_cache(maxsize=4096)
def quiet_until(quiet: Quiet, timezone: str, now: datetime) -> datetime | None:
    """Return when the quiet hours end that `now` lies in; None when it lies in none."""
    zone = ZoneInfo(timezone)
    at, found = now, None
    while (end := _end_of(quiet, zone, at)) is not None:
        at = found = end
    return found


def _end_of(quiet: Quiet, zone: ZoneInfo, at: datetime) -> datetime | None:
    today = at.astimezone(zone).date()
    for day in (today - timedelta(days=1), today):
        last = day if quiet.end > quiet.start else day + timedelta(days=1)
        if _moment(day, quiet.start, zone, fold=0) <= at < (end := _moment(last, quiet.end, zone, fold=1)):
            return end
    return None


def _moment(day: date, at: time, zone: ZoneInfo, *, fold: int) -> datetime:
    """Return when a clock shows a time; of two moments the first or the last, for none the one it jumps over it."""
    wall = datetime.combine(day, at)
    found = wall.replace(tzinfo=zone, fold=fold).astimezone(UTC)
    shown = found.astimezone(zone).replace(tzinfo=None, fold=0)
    if shown == wall:
        return found
    if shown < wall:  # fold=1 of a time that is left out lies before the jump
        found = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    while (earlier := found - _MINUTE).astimezone(zone).replace(tzinfo=None) >= wall:
        found = earlier
    return found
