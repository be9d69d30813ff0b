"""Connecting accounts by OAuth."""

from typing import Annotated, Any, Final
from uuid import UUID

from litestar import Request, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, QueryParameter
from pydantic import AwareDatetime, BaseModel

from services.broker.routes.credentials import actor_of
from services.broker.service.oauth import OAuth
from shared.errors import Invalid
from shared.http import Caller, Who

HttpRequest = Request[Any, Any, Any]
_VISIBLE: Final = r"^[\x21-\x7e]{1,4096}\Z"


class RedirectTold(BaseModel):
    """Send the user to `url`; they are back by `expires_at`, or begin anew."""

    url: str
    expires_at: AwareDatetime


class ConnectedTold(BaseModel):
    """The account is connected. Its token is refreshed by itself; null: it has no end."""

    account_id: UUID
    expires_at: AwareDatetime | None


def handlers(oauth: OAuth) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/broker/oauth/{venue:str}/start", caller=Caller.USER, response_headers={"cache-control": "no-store"})
    async def oauth_start(
        request: HttpRequest, identity: Who, venue: FromPath[str], account_id: Annotated[UUID, QueryParameter()]
    ) -> RedirectTold:
        """Begin to connect your account; answers the venue's address. An earlier start for the account is void."""
        started = await oauth.start(actor_of(request, identity), venue, account_id)
        return RedirectTold(url=started.url, expires_at=started.expires_at)

    @get("/broker/oauth/{venue:str}/callback", caller=Caller.USER, response_headers={"cache-control": "no-store"})
    async def oauth_callback(  # noqa: PLR0917 - what a venue sends back
        request: HttpRequest,
        identity: Who,
        venue: FromPath[str],
        given_state: Annotated[str, QueryParameter(name="state", pattern=_VISIBLE)],  # `state` alone is Litestar's
        code: Annotated[str | None, QueryParameter(pattern=_VISIBLE)] = None,
        error: Annotated[str | None, QueryParameter(max_length=200)] = None,
    ) -> ConnectedTold:
        """Hand on what the venue sent back: your state, good once, and a code, or an error."""
        if code is None and error is None:
            raise Invalid("send the code, or the error, that the venue sent")
        connected = await oauth.finish(actor_of(request, identity), venue, given_state, code if error is None else None)
        return ConnectedTold(account_id=connected.account_id, expires_at=connected.expires_at)

    return [oauth_start, oauth_callback]
