"""The picture of a user's alert, as Discord and mail get it."""

from typing import Final
from uuid import UUID

from litestar import Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath

from services.alerts.service.pictures import Pictures
from services.alerts.store.alerts import AlertsStore
from shared.errors import NotFound, Transient
from shared.http import Caller, Who
from shared.identity import own
from shared.messaging.door import Door

AGAIN_S: Final = 5.0
FRESH_S: Final = 30


class NoPicture(Transient):
    """The chart cannot be drawn now: charts are off, or too many are asked for."""

    code = "NO_PICTURE"


def handlers(pictures: Pictures, store: AlertsStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/alerts/{user_id:uuid}/{alert_id:uuid}/chart.png", caller=Caller.USER, media_type="image/png")
    async def show_chart(identity: Who, user_id: FromPath[UUID], alert_id: FromPath[UUID]) -> Response[bytes]:
        """Return the quotes of the alert's session with the alert marked, and the volume of its contracts, as PNG."""
        own(identity, user_id)
        async with door.read() as tx:
            alert = await store.alert(tx, user_id, alert_id)
        if alert is None:
            raise NotFound("there is no such alert")
        picture = await pictures.of_alert(alert)
        if picture is None:
            raise NoPicture(retry_after_s=AGAIN_S)
        headers = {"cache-control": f"private, max-age={FRESH_S}"}
        return Response(picture.png, media_type="image/png", headers=headers)

    return [show_chart]
