"""Running handlers inside a transaction, so that an event that fails costs only itself.

The events of a transaction run together behind a savepoint. When one fails, the transaction goes back to it, the
failing event is set aside, with what must wait behind it, and the others run again. How many run together depends on
how many failed lately (`Pace`). A batch handler names the failing events by raising `SomeFailed`; where it does not,
its batch is halved until the event stands alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import log, sqrt
from typing import Final

from shared.contracts.base import Event
from shared.db import Tx, is_rerun
from shared.errors import SomeFailed
from shared.messaging.decode import Item
from shared.messaging.failed import Failure

HALF_LIFE: Final = 500
"""After so many events the ones before them count half."""
FORGOTTEN: Final = 0.05
"""Failures that count less than this do not count."""


@dataclass(slots=True)
class Pace:
    """How often events failed lately, and so how many of them run together: all while none fails.

    Events by themselves: a group costs a savepoint, about half an event; a failure costs half the group again. The sum
    is smallest at the square root of 1 / share. A batch handler that does not name what failed is asked again and
    again, and each answer tells most when a group fails as often as not: at ln 2 / share.
    """

    seen: float = 0.0
    failed: float = 0.0

    def note(self, seen: int, failed: int) -> None:
        """Count events, and those of them that failed and had to be found."""
        keep = 0.5 ** (seen / HALF_LIFE)
        self.seen = self.seen * keep + seen
        self.failed = self.failed * keep + failed

    def together(self, todo: Sequence[Item]) -> int:
        """Return how many of the events run together next."""
        if self.failed < FORGOTTEN:
            return len(todo)
        once_in = self.seen / self.failed
        batch = todo[0].route is not None and todo[0].route.batch
        return max(1, int(once_in * log(2) if batch else sqrt(once_in)))


@dataclass(slots=True)
class Turn:
    """Where a transaction is: in the handlers or in the runtime's own statements, and at which event."""

    handling: bool = False
    at: Item | None = None


@dataclass(slots=True)
class Ran:
    """What became of the items: every one of them is in exactly one of `done`, `failed` and `behind`."""

    events: list[Event] = field(default_factory=list[Event])
    done: list[Item] = field(default_factory=list[Item])
    failed: list[tuple[Item, Failure]] = field(default_factory=list[tuple[Item, Failure]])
    behind: list[Item] = field(default_factory=list[Item])


class OnlyFailures(Exception):
    """So many events failed and none was done that it is hardly the events' fault."""


async def run(  # noqa: PLR0917 - a transaction's parts, passed on by its two callers
    tx: Tx,
    items: Sequence[Item],
    judge: Callable[[Item, Exception], Failure],
    turn: Turn,
    most: int,
    pace: Pace,
) -> Ran:
    """Run the handlers, in order; `judge` says what a failure means.

    A failure that waits or is held puts the later items of its key behind it. Raises what is not the events' fault
    (`is_rerun`), OnlyFailures when `most` events failed, none was done and more are left, and what a single item
    raises: it is the caller's whole transaction, and needs no savepoint.
    """
    if len(items) == 1:
        return await _alone(tx, items[0], turn)
    ran = Ran()
    todo = list(items)
    suspects = 0  # so many of `todo`, from its start, failed together, and nobody knows which
    while todo:
        together = todo[: max(1, suspects // 2) if suspects else pace.together(todo)]
        await tx.savepoint()
        try:
            events = await handle(tx, together, turn)
        except Exception as error:
            if is_rerun(error):
                raise
            turn.handling = False
            await tx.back_to_savepoint()
            blamed = _blamed(error, together, turn.at)
            if not blamed:
                suspects = len(together)
                continue
            suspects = 0
            todo = _set_aside(ran, todo, {id(item): judge(item, why) for item, why in blamed})
            if not isinstance(error, SomeFailed):
                pace.note(1, 1)
            if len(ran.failed) >= most and not ran.done and todo:
                raise OnlyFailures from error
        else:
            suspects = max(0, suspects - len(together))
            pace.note(len(together), 0)
            ran.events += events
            ran.done += together
            todo = todo[len(together) :]
    return ran


async def _alone(tx: Tx, item: Item, turn: Turn) -> Ran:
    try:
        return Ran(await handle(tx, [item], turn), [item])
    except SomeFailed as error:
        raise error.failures.get(item.event_id, error) from error


async def handle(tx: Tx, items: Sequence[Item], turn: Turn) -> list[Event]:
    """Run the handlers, in order; neighbours of one batch route go together."""
    events: list[Event] = []
    turn.handling = True
    for route, group in groupby(items, key=lambda item: item.route):
        if route is None:
            raise TypeError("an item without a handler cannot run")
        turn.at = None
        if route.batch:
            events += await _called(route.handler([item.event for item in group], tx))
        else:
            for item in group:
                turn.at = item
                events += await _called(route.handler(item.event, tx))
    turn.at = None
    turn.handling = False
    return events


async def _called(events: Awaitable[Sequence[Event]]) -> Sequence[Event]:
    """Await a handler. One that something it awaits cancelled has failed; nobody asked the consumer to stop."""
    try:
        return await events
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("the handler was cancelled from within, by something that it awaits") from error


def _blamed(error: Exception, together: Sequence[Item], at: Item | None) -> list[tuple[Item, Exception]]:
    """Return the items at fault with their errors; none when nobody knows which."""
    if at is not None:
        return [(at, error)]
    if isinstance(error, SomeFailed):
        named = [(item, why) for item in together if (why := error.failures.get(item.event_id)) is not None]
        if named:
            return named
    return [(together[0], error)] if len(together) == 1 else []


def _set_aside(ran: Ran, todo: Sequence[Item], failures: Mapping[int, Failure]) -> list[Item]:
    """Part the failed items, by `id`, and what must wait behind them from what is left to do, which is returned."""
    fenced: set[bytes | None] = set()
    left: list[Item] = []
    for item in todo:
        failure = failures.get(id(item))
        key = item.record.key
        if key in fenced:
            ran.behind.append(item)
        elif failure is None:
            left.append(item)
        else:
            ran.failed.append((item, failure))
            if key is not None and failure.status in {"waiting", "held"}:
                fenced.add(key)
    return left
