"""The deadline of a transaction's handlers: what hangs is cut off, and told from a Postgres that is slow."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager

from shared.db import Database, DatabaseUnavailable
from shared.messaging.decode import Item
from shared.messaging.handling import Turn

_log = logging.getLogger(__name__)


class TookTooLong(TimeoutError):
    """The handlers did not finish before the deadline; `item` is the one that was running, where that is known."""

    def __init__(self, item: Item | None) -> None:
        super().__init__("the handlers did not finish before the deadline")
        self.item = item


@asynccontextmanager
async def cut_off(db: Database, after_s: float) -> AsyncGenerator[Turn]:
    """End the block after a while.

    A handler that swallows its cancellation is cancelled again every second.
    Raises TookTooLong when the handlers were slow; DatabaseUnavailable when Postgres was: no event's fault.
    """
    turn = Turn()
    try:
        async with asyncio.timeout(after_s):
            with _insisting(turn, after_s):
                yield turn
    except TimeoutError as error:
        if turn.handling and await db.answers():
            raise TookTooLong(turn.at) from error
        raise DatabaseUnavailable("the database did not answer before the deadline") from error


@contextmanager
def _insisting(turn: Turn, after_s: float) -> Generator[None]:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    again = 0

    def insist() -> None:
        nonlocal again, timer
        if turn.handling and task is not None:
            again += 1
            _log.error("handler_will_not_stop", extra={"after_s": after_s, "times": again})
            task.cancel()
        timer = loop.call_later(1, insist)

    timer = loop.call_later(after_s + 1, insist)
    try:
        yield
    finally:
        timer.cancel()
        for _ in range(again if task is not None else 0):
            task.uncancel()  # pyright: ignore[reportOptionalMemberAccess] - not None, as the line above says
