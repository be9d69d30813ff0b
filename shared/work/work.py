"""What a kind of effect is: where its rows wait, how one is performed, and what follows from its end."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shared.contracts.base import Event
from shared.db import Row, Tx
from shared.work.rules import OnUnknown, Policy, Status


@dataclass(frozen=True, slots=True)
class Performed:
    """A success: what the other side answered, and how long it wants its lane left alone."""

    result: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Started:
    """A row that `prepare` has started by itself (`table.start`), in the transaction that decided on its effect."""

    row: Row


@dataclass(frozen=True, slots=True)
class Settled:
    """A row that reached its end, for the service to act on in the same transaction."""

    row: Row
    status: Status
    attempts: int
    error: Exception | None
    detail: str
    result: Mapping[str, Any]
    at: datetime


def created_at(row: Row) -> datetime:
    """Return when a row was written."""
    at: datetime = row["created_at"]
    return at


def never() -> bool:
    """Say that what can wait stands back for nothing."""
    return False


def equal(_: Row) -> int:
    """Return the rank of a row where all have the same."""
    return 0


def one_by_one(
    settled: Callable[[Settled, Tx], Awaitable[Sequence[Event]]],
) -> Callable[[Sequence[Settled], Tx], Awaitable[Sequence[Event]]]:
    """Return a `Work.settled` of what takes one end."""

    async def each(ends: Sequence[Settled], tx: Tx) -> Sequence[Event]:
        return [event for end in ends for event in await settled(end, tx)]

    return each


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of effect, and the table its rows wait in.

    `only` is an SQL condition for a table that several kinds share, `order` the columns by which what is due is claimed
    (with an index on them where `status = 'pending'`, and no other there: a claim sorts what seems to be few).
    `perform` gets the row as it was claimed, or what `prepare` made of it: all reading belongs there, for it runs
    before `started`, and what it raises is no doubt about the effect; where it decides in a transaction, that may start
    the row too (`Started`), a commit less. `settled` runs in the transaction that records the ends of up to
    `policy.together` rows and returns the events that tell of them (`one_by_one` makes it of what takes one). Of rows
    that are prepared, the lowest `rank` is performed first; those above 0 can wait (`pace.Patience`), `order` claims
    them last, and while it `stands_back` none of them is claimed. `look_up` answers whether an uncertain effect has
    happened. `pauses` is the column that names who is left alone when an effect ends with Busy, where that is not the
    lane alone: several lanes may lead to one destination, and `pauses_with` names another kind that leads to the same
    ones. A row carries its token: whoever may have stalled over its lease checks that it is still there before it
    changes anything else. `since` says when a row's age begins.
    """

    kind: str
    table: str
    perform: Callable[[Row], Awaitable[Performed]]
    on_unknown: OnUnknown
    prepare: Callable[[Row], Awaitable[Row | Started]] | None = None
    settled: Callable[[Sequence[Settled], Tx], Awaitable[Sequence[Event]]] | None = None
    look_up: Callable[[Row], Awaitable[bool]] | None = None
    only: str = "true"
    pauses: str = "lane"
    pauses_with: str | None = None
    order: str = "due_at, id"
    policy: Policy = field(default_factory=Policy)
    since: Callable[[Row], datetime] = created_at
    rank: Callable[[Row], int] = equal
    stands_back: Callable[[], bool] = never
