"""A user's silences: what is not told for a while."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from services.alerts.service import Actor, NewSilence, Silences
from services.alerts.store.silences import SilenceStore
from shared.contracts.symbols import PATTERN
from shared.db import Row
from shared.http import Caller, Who, exchange_of
from shared.idempotency import answer_once
from shared.identity import Identity, own
from shared.messaging.door import Done, Door

SHOWN: Final = 200

HttpRequest = Request[Any, Any, Any]

Severity = Literal["critical", "normal"]
Symbol = Annotated[str, StringConstraints(pattern=f"^(?i:{PATTERN})$", to_upper=True, strip_whitespace=True)]


class SilenceBody(BaseModel):
    """A silence: all that it names must be met. One that names nothing silences everything and says `all`."""

    model_config = ConfigDict(extra="forbid")

    kind: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_.]{0,63}$")
    symbol: Symbol | None = None
    rule_id: UUID | None = None
    severity: Severity | None = None
    all: bool = False
    starts_at: AwareDatetime | None = None
    ends_at: AwareDatetime
    comment: str = Field(min_length=1, max_length=500)


class SilenceView(msgspec.Struct, frozen=True):
    """A silence. `author` is who asked for it."""

    id: UUID
    kind: str | None
    symbol: str | None
    rule_id: UUID | None
    severity: str | None
    starts_at: datetime
    ends_at: datetime
    author: str
    comment: str
    created_at: datetime


def handlers(silences: Silences, store: SilenceStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/alerts/{user_id:uuid}/silences", caller=Caller.USER)
    async def list_silences(identity: Who, user_id: FromPath[UUID]) -> list[SilenceView]:
        """Return the user's silences, those that end last first; what ended is shown for 90 days."""
        own(identity, user_id)
        async with door.read() as tx:
            return [_view(row) for row in await store.of_user(tx, user_id, SHOWN)]

    @post("/api/alerts/{user_id:uuid}/silences", caller=Caller.USER)
    async def add_silence(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[SilenceBody]
    ) -> Response[bytes]:
        """Add a silence. An Idempotency-Key makes a repetition harmless."""
        own(identity, user_id)
        actor = _actor(request, identity)
        asked = NewSilence(
            data.kind,
            data.symbol,
            data.rule_id,
            None if data.severity is None else data.severity == "critical",
            data.starts_at,
            data.ends_at,
            data.comment,
            data.all,
        )

        async def add(tx: Any) -> Done[SilenceView]:
            done = await silences.add(actor, user_id, asked, tx)
            return Done(_view(done.value), done.events)

        return await answer_once(request, door, add, status_code=201)

    @delete("/api/alerts/{user_id:uuid}/silences/{silence_id:uuid}", caller=Caller.USER)
    async def end_silence(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], silence_id: FromPath[UUID]
    ) -> None:
        """End a silence now; it stays in the list."""
        own(identity, user_id)
        actor = _actor(request, identity)
        await door.run(lambda tx: silences.end(actor, user_id, silence_id, tx))

    return [list_silences, add_silence, end_silence]


def _actor(request: HttpRequest, identity: Identity) -> Actor:
    return Actor(str(identity.user_id), exchange_of(request.scope).request_id)


def _view(row: Row) -> SilenceView:
    severity = None if row["critical"] is None else "critical" if row["critical"] else "normal"
    return SilenceView(
        id=row["silence_id"],
        kind=row["kind"],
        symbol=row["symbol"],
        rule_id=row["rule_id"],
        severity=severity,
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        author=row["author"],
        comment=row["comment"],
        created_at=row["created_at"],
    )
