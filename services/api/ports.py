"""What has more than one implementation here: the way to a service (in memory, over HTTP)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol

from shared.errors import Transient

Headers = Iterable[tuple[bytes, bytes]]


class UpstreamUnavailable(Transient):
    """The service that owns this does not answer; try again in a moment."""

    code: ClassVar[str] = "UPSTREAM_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request as a service receives it. `path` is decoded, `query` is as the client encoded it."""

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a service answered."""

    status: int
    headers: Headers
    body: bytes


class Upstream(Protocol):
    """One service."""

    async def send(self, request: Outgoing) -> Answer:
        """Return its answer, whatever the status; raises UpstreamUnavailable when there is none."""
        ...
