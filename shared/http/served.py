"""What a service shows of itself to be served over HTTP. `shared.service.Service` does; tests bring their own."""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol

from litestar.types import ControllerRouterHandler

from shared.clock import Clock
from shared.messaging.door import Door
from shared.messaging.ops import Operations
from shared.schedule import Scheduler
from shared.settings import SharedSettings


class Served(Protocol):
    """A service as its HTTP side sees it."""

    @property
    def name(self) -> str:
        """Its name, which is also the audience of its identity tokens."""
        ...

    @property
    def settings(self) -> SharedSettings:
        """The shared settings."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock."""
        ...

    @property
    def door(self) -> Door:
        """The way to the database."""
        ...

    @property
    def handlers(self) -> Sequence[ControllerRouterHandler]:
        """Its own routes."""
        ...

    @property
    def operations(self) -> Operations:
        """What a person does about its messaging."""
        ...

    @property
    def scheduler(self) -> Scheduler:
        """What runs by the clock."""
        ...

    def readiness(self) -> Awaitable[Mapping[str, tuple[bool, str]]]:
        """Return name -> (ok, detail) of all that it needs."""
        ...
