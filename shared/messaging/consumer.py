"""The table of a consumer: which events it handles, with what, and how it treats failures.

    consumer = Consumer("alerts.activity")
    consumer.on(ActivityDetected, service.raise_alerts)

A handler is a plain function: event and transaction in, events out. `on_batch` hands over all of a lane's
events of that type at once, in order for each key. It names the events that failed by raising `SomeFailed`; whatever
else it raises halves the batch until the failing event stands alone.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.db import Tx

E = TypeVar("E", bound=Event)
Handler = Callable[[Any, Tx], Awaitable[Sequence[Event]]]


@dataclass(frozen=True, slots=True)
class Policy:
    """How a consumer treats a failing event.

    `delays_s` are the waits before each retry (drawn plus or minus 10%); after the last one the event is dead.
    `not_yet_delays_s` are the longer waits while a prerequisite is missing. `hold` keeps the key's later
    events waiting behind a dead one until a person decides; without it they go on.
    """

    delays_s: tuple[float, ...] = (5.0, 10.0, 20.0)
    not_yet_delays_s: tuple[float, ...] = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
    hold: bool = False
    fuse_keys: int = 50  # failures over so many distinct keys in a row open the fuse ...
    fuse_ratio: float = 0.5  # ... or this share of the last `fuse_window` outcomes
    fuse_window: int = 200
    probe_every_s: float = 30.0
    max_waiting_per_key: int = 10_000
    max_waiting: int = 100_000


@dataclass(frozen=True, slots=True)
class Route:
    """One line of the table."""

    event: type[Event]
    handler: Handler
    batch: bool


@dataclass(slots=True)
class Consumer:
    """A named reader. `<service>.<what>`; the name is its Kafka group and its key in inbox and failed jobs."""

    name: str
    policy: Policy = field(default_factory=Policy)
    max_batch: int = 500
    routes: dict[str, Route] = field(default_factory=dict[str, Route])

    def on(self, event: type[E], handler: Callable[[E, Tx], Awaitable[Sequence[Event]]]) -> None:
        """Handle `event` one at a time."""
        self._add(Route(event, handler, batch=False))

    def on_batch(self, event: type[E], handler: Callable[[Sequence[E], Tx], Awaitable[Sequence[Event]]]) -> None:
        """Handle `event` in batches."""
        self._add(Route(event, handler, batch=True))

    def _add(self, route: Route) -> None:
        if route.event.key is Event.key:
            raise ValueError(
                f"{self.name} cannot keep {route.event.type} in order: {route.event.__name__} has no key of its own; "
                "define the property `key` in its contract"
            )
        if route.event.type in self.routes:
            raise ValueError(
                f"{self.name} already has a handler for {route.event.type}; an event has one in a consumer"
            )
        self.routes[route.event.type] = route

    @property
    def topics(self) -> tuple[Topic, ...]:
        """The topics that the table's events live in."""
        return tuple(dict.fromkeys(route.event.topic for route in self.routes.values()))
