"""Running handlers inside a transaction, so that an event that fails costs only itself.

The events of a transaction run together behind a savepoint. When one fails, the transaction goes back to it, the
failing event is set aside, with what must wait behind it, and the others run again; after a failure fewer run
together, and more again while all goes well. A batch handler names the failing events by raising `SomeFailed`; where
it does not, its batch is halved until the event stands alone.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

from shared.contracts.base import Event
from shared.db import Tx, is_rerun
from shared.errors import SomeFailed
from shared.messaging.decode import Item
from shared.messaging.failed import Failure

AFTER_FAILURE: Final = 8
"""So many events run together after one of them failed."""


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


async def run(tx: Tx, items: Sequence[Item], judge: Callable[[Item, Exception], Failure], turn: Turn, most: int) -> Ran:
    """Run the handlers, in order; `judge` says what a failure means.

    A failure that waits or is held puts the later items of its key behind it. Raises what is not the events' fault
    (`is_rerun`), OnlyFailures when `most` events failed, none was done and more are left, and what a single item
    raises: it is the caller's whole transaction, and needs no savepoint.
    """
    if len(items) == 1:
        try:
            return Ran(await handle(tx, items, turn), list(items))
        except SomeFailed as error:
            raise error.failures.get(items[0].event_id, error) from error
    ran = Ran()
    todo = list(items)
    size = len(todo)
    while todo:
        together = todo[:size]
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
                size = len(together) // 2
                continue
            for item, why in blamed:
                failure = judge(item, why)
                ran.failed.append((item, failure))
                todo = _without(todo, item, failure, ran.behind)
            if len(ran.failed) >= most and not ran.done and todo:
                raise OnlyFailures from error
            size = len(todo) if isinstance(error, SomeFailed) else min(len(together), AFTER_FAILURE)
        else:
            ran.events += events
            ran.done += together
            todo = todo[len(together) :]
            size = len(together) * 2
    return ran


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


def _without(todo: Sequence[Item], failed: Item, failure: Failure, behind: list[Item]) -> list[Item]:
    """Take an item out, and what must wait behind it."""
    key = failed.record.key
    fences = key is not None and failure.status in {"waiting", "held"}
    rest: list[Item] = []
    seen = False
    for item in todo:
        if item is failed:
            seen = True
        elif seen and fences and item.record.key == key:
            behind.append(item)
        else:
            rest.append(item)
    return rest
