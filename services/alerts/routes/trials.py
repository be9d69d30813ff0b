"""A test of a channel."""

from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from services.alerts.routes.common import actor_of
from services.alerts.service.trials import Trials
from shared.contracts.alerts import Channel
from shared.http import Caller, Who
from shared.identity import own
from shared.messaging.door import Door


class Sending(msgspec.Struct, frozen=True):
    """The delivery that the log and the notices tell of."""

    delivery_id: UUID


def handlers(trials: Trials, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @post("/api/alerts/{user_id:uuid}/channels/{channel:str}/{target:str}/test", caller=Caller.USER, status_code=202)
    async def send_test(
        request: Request[Any, Any, Any],
        identity: Who,
        user_id: FromPath[UUID],
        channel: FromPath[Channel],
        target: FromPath[str],
    ) -> Sending:
        """Send a test to one target of a channel; ten an hour at most."""
        own(identity, user_id)
        actor = actor_of(request, identity)
        return Sending(await door.run(lambda tx: trials.send(actor, user_id, channel, target, tx)))

    return [send_test]
