"""When a user gets digests."""

from datetime import datetime
from uuid import UUID

import msgspec
from litestar import get, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from pydantic import BaseModel, ConfigDict, Field

from services.alerts.service.digests import Choice, Chosen, Digests, Wish
from shared.db import Tx
from shared.http import Caller, Who
from shared.identity import own
from shared.messaging.door import Done, Door


class DigestBody(BaseModel):
    """When digests come, by the clock on the user's wall. Weekly ones come on `weekday`: 0 is Monday, 6 Sunday."""

    model_config = ConfigDict(extra="forbid")

    frequency: Choice
    hour: int = Field(default=8, ge=0, le=23)
    weekday: int = Field(default=0, ge=0, le=6)


class DigestView(msgspec.Struct, frozen=True):
    """When digests come; the time zone is that of the user's preferences, else of their settings."""

    frequency: str
    hour: int
    weekday: int
    timezone: str
    next_due_at: datetime | None


def handlers(digests: Digests, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/alerts/{user_id:uuid}/digest", caller=Caller.USER)
    async def show_digest(identity: Who, user_id: FromPath[UUID]) -> DigestView:
        """Return when the user gets digests, and when the next one is due."""
        own(identity, user_id)

        async def chosen(tx: Tx) -> Done[Chosen]:
            return Done(await digests.chosen(user_id, tx))

        return _view(await door.run(chosen))

    @put("/api/alerts/{user_id:uuid}/digest", caller=Caller.USER)
    async def choose_digest(identity: Who, user_id: FromPath[UUID], data: JSONBody[DigestBody]) -> DigestView:
        """Set when the user gets digests: off, daily or weekly. Those that would be empty are not sent."""
        own(identity, user_id)
        wish = Wish(data.frequency, data.hour, data.weekday)
        return _view(await door.run(lambda tx: digests.choose(user_id, wish, tx)))

    return [show_digest, choose_digest]


def _view(chosen: Chosen) -> DigestView:
    wish = chosen.wish
    return DigestView(wish.frequency, wish.hour, wish.weekday, chosen.timezone, chosen.next_due_at)
