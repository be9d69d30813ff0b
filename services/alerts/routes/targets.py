"""Sealed targets under another key: what an operator's command calls. No target comes out."""

from uuid import UUID

import msgspec
from litestar import post
from litestar.handlers import HTTPRouteHandler
from litestar.params import JSONBody
from pydantic import BaseModel, ConfigDict, Field

from services.alerts.routes.common import HttpRequest, actor_of
from services.alerts.service.targets import Targets
from services.alerts.store.targets import Place
from shared.errors import Invalid
from shared.http import Caller, Who


class RotateBody(BaseModel):
    """Where to go on: `next` of the answer before."""

    model_config = ConfigDict(extra="forbid")

    after: str | None = Field(default=None, max_length=200)


class RotationView(msgspec.Struct, frozen=True):
    """How far a rotation is. `next`: go on after this target. `keys`: how many targets lie under each key.

    `readable`: how many are to be sealed yet.
    """

    rewrapped: int
    unreadable: list[str]
    next: str | None
    keys: dict[str, int]
    readable: int


def handlers(targets: Targets) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/api/alerts/targets/rotate", caller=Caller.ADMIN, status_code=200)
    async def rotate_targets(request: HttpRequest, identity: Who, data: JSONBody[RotateBody]) -> RotationView:
        """Wrap targets under old keys anew, some ten thousand; repeat with `after` until `next` is null."""
        after = None if data.after is None else _place(data.after)
        done = await targets.rotate(actor_of(request, identity), after)
        going = None if done.next is None else str(done.next)
        return RotationView(done.rewrapped, list(done.unreadable), going, dict(done.keys), done.readable)

    return [rotate_targets]


def _place(text: str) -> Place:
    """Return the place that `next` named. Raises Invalid."""
    user_id, _, lane = text.partition("/")
    try:
        return Place(UUID(user_id), lane.partition("/")[0], lane)
    except ValueError as error:
        raise Invalid("`after` is what `next` was") from error
