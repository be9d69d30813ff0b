"""The door for everything that is not a Kafka record: HTTP requests, clocks and workers.

    created = await door.run(lambda tx: service.add_stock(command, tx))

A use case takes the transaction and returns the events that happened, or `Done(value, events)` when the caller
wants an answer. State and events commit together; the relay hears of it afterwards.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, TypeVar

from shared import telemetry
from shared.contracts.base import Event
from shared.db import Database, Tx
from shared.messaging.outbox import Message, Outbox

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """What a use case answers, and what happened. `letters` are records to be published as they are."""

    value: T
    events: Sequence[Event] = ()
    letters: Sequence[Message] = ()


class Door:
    """Runs use cases, each in one transaction with its events."""

    def __init__(self, db: Database, outbox: Outbox) -> None:
        self._db = db
        self._outbox = outbox

    async def run(self, use_case: Callable[[Tx], Awaitable[Done[T]]]) -> T:
        """Run the use case in a transaction, publish its events with it, and return its answer."""
        with telemetry.working("door"):
            async with self._db.transaction() as tx:
                await telemetry.remember(tx)
                done = await use_case(tx)
                await self._outbox.add(tx, done.events, done.letters)
        return done.value

    async def publish(self, use_case: Callable[[Tx], Awaitable[Sequence[Event]]]) -> None:
        """Run a use case that only tells what happened."""

        async def telling(tx: Tx) -> Done[None]:
            return Done(None, await use_case(tx))

        await self.run(telling)

    def read(self) -> AbstractAsyncContextManager[Tx]:
        """Read without a transaction."""
        return self._db.read()

    def transaction(self) -> AbstractAsyncContextManager[Tx]:
        """A transaction without events, for bookkeeping such as leases."""
        return self._db.transaction()
