"""What may be done in more than one way: reaching a service (in memory, over HTTP), trusting a token."""

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


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a foreign token speaks of, and until when (Unix time)."""

    name: str
    expires: float


class Tokens(Protocol):
    """Verifies somebody else's tokens: services.api.adapters.tokens, or a fake."""

    async def verify(self, token: str) -> Subject:
        """Return the subject; raises Unauthenticated."""
        ...
