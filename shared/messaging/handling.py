"""Running handlers inside a transaction, so that an event that fails costs only itself.

The events of a transaction run behind a savepoint. A call that fails before its first statement has changed nothing:
what fails is set aside, with what must wait behind it, and the others go on. One that fails later takes the transaction
back to the savepoint, and what ran since then runs again; while that happens, there is a savepoint for as many events
as `Pace` says. A batch handler names the failing events by raising `SomeFailed`; where it does not, its batch is halved
until the event stands alone.
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
    undone: float = 0.0

    def note(self, seen: int, failed: int, undone: int = 0) -> None:
        """Count events, those of them that failed and had to be found, and ways back to a savepoint."""
        keep = 0.5 ** (seen / HALF_LIFE)
        self.seen = self.seen * keep + seen
        self.failed = self.failed * keep + failed
        self.undone = self.undone * keep + undone

    @property
    def calm(self) -> bool:
        """Whether nothing failed lately that counts."""
        return self.failed < FORGOTTEN

    @property
    def tidy(self) -> bool:
        """Whether what failed lately had changed nothing, so that one savepoint is enough."""
        return self.undone < FORGOTTEN

    def together(self, todo: Sequence[Item]) -> int:
        """Return how many of the events run together next."""
        if self.calm:
            return len(todo)
        once_in = self.seen / self.failed
        batch = todo[0].route is not None and todo[0].route.batch
        return max(1, int(once_in * log(2) if batch else sqrt(once_in)))


@dataclass(slots=True)
class Turn:
    """Where a transaction is: in the handlers or in the runtime's own statements, and in the call for which events."""

    handling: bool = False
    call: Sequence[Item] = ()

    @property
    def at(self) -> Item | None:
        """The event that is being handled; None when there are several."""
        return self.call[0] if len(self.call) == 1 else None


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
    known = 0  # so many of `todo`, from its start, have run before and were undone
    suspects = 0  # so many, after those, failed together, and nobody knows which
    safe: tuple[int, int] | None = None  # how many were done, and how many events told, at the savepoint
    while todo:
        if safe is None or not pace.tidy:
            await tx.savepoint()
            safe = len(ran.done), len(ran.events)
        together = todo[: known or (suspects + 1) // 2 or pace.together(todo)]
        todo = todo[len(together) :]
        before = len(ran.done)
        try:
            await handle(tx, together, turn, ran)
        except Exception as error:
            if is_rerun(error):
                raise
            turn.handling = False
            left = together[len(ran.done) - before :]
            again = await _undo(tx, ran, safe, pace)
            todo, known = [*again, *left, *todo], len(again)
            blamed = _blamed(error, turn.call)
            suspects = 0 if blamed else len(turn.call)
            if blamed:
                todo = _set_aside(ran, todo, {id(item): judge(item, why) for item, why in blamed})
                pace.note(1, 0 if isinstance(error, SomeFailed) else 1)
            if len(ran.failed) >= most and not (ran.done or known) and todo:
                raise OnlyFailures from error
        else:
            suspects = suspects if known else max(0, suspects - len(together))
            pace.note(0 if known else len(together), 0)
            known = 0
    return ran


async def _undo(tx: Tx, ran: Ran, safe: tuple[int, int], pace: Pace) -> Sequence[Item]:
    """Undo the call that failed; if it had changed something, then all since the savepoint, which is returned."""
    if tx.forget_step():
        return ()
    await tx.back_to_savepoint()
    pace.note(0, 0, 1)
    done, told = safe
    undone = ran.done[done:]
    del ran.done[done:], ran.events[told:]
    return undone


async def _alone(tx: Tx, item: Item, turn: Turn) -> Ran:
    ran = Ran()
    try:
        await handle(tx, [item], turn, ran)
    except SomeFailed as error:
        raise error.failures.get(item.event_id, error) from error
    return ran


async def handle(tx: Tx, items: Sequence[Item], turn: Turn, ran: Ran) -> None:
    """Run the handlers, in order; neighbours of one batch route go together. `ran` grows by each call that works."""
    turn.handling = True
    for route, group in groupby(items, key=lambda item: item.route):
        if route is None:
            raise TypeError("an item without a handler cannot run")
        for turn.call in [list(group)] if route.batch else [[item] for item in group]:
            tx.step()
            events = [item.event for item in turn.call]
            ran.events += list(await _called(route.handler(events if route.batch else events[0], tx)))
            ran.done += turn.call
    turn.handling = False


async def _called(events: Awaitable[Sequence[Event]]) -> Sequence[Event]:
    """Await a handler. One that something it awaits cancelled has failed; nobody asked the consumer to stop."""
    try:
        return await events
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise RuntimeError("the handler was cancelled from within, by something that it awaits") from error


def _blamed(error: Exception, call: Sequence[Item]) -> list[tuple[Item, Exception]]:
    """Return the items at fault with their errors; none when nobody knows which."""
    if isinstance(error, SomeFailed):
        named = [(item, why) for item in call if (why := error.failures.get(item.event_id)) is not None]
        if named:
            return named
    return [(call[0], error)] if len(call) == 1 else []


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
