"""Credentials of accounts. Values go in and never come out."""

from typing import Annotated, Any
from uuid import UUID

from litestar import Request, delete, get, post, put
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, SecretStr

from services.broker.service.credentials import Actor, Credentials
from services.broker.service.vault import About
from shared.http import Caller, Who, exchange_of
from shared.identity import Identity
from shared.messaging.door import Door

HttpRequest = Request[Any, Any, Any]
Name = Annotated[str, Field(min_length=1, max_length=64)]


class SecretsBody(BaseModel):
    """All credentials of an account, by the names that its venue needs."""

    model_config = ConfigDict(extra="forbid")

    secrets: dict[Name, SecretStr] = Field(min_length=1, max_length=20)


class RotateBody(BaseModel):
    """Where to go on: `next` of the answer before."""

    model_config = ConfigDict(extra="forbid")

    after: UUID | None = None


class CredentialsTold(BaseModel):
    """What may be told of credentials. `refused`: the venue took the authorisation back, connect the account anew."""

    names: list[str]
    updated_at: AwareDatetime
    expires_at: AwareDatetime | None
    refused: bool


class RotationTold(BaseModel):
    """How far a rotation is. `next`: go on after this account. `keys`: how many credentials lie under each key."""

    rewrapped: int
    unreadable: list[UUID]
    next: UUID | None
    keys: dict[str, int]


def handlers(credentials: Credentials, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @put("/broker/accounts/{account_id:uuid}/credentials", caller=Caller.USER)
    async def set_credentials(
        request: HttpRequest, identity: Who, account_id: FromPath[UUID], data: JSONBody[SecretsBody]
    ) -> CredentialsTold:
        """Set all credentials of your account; those before are gone. 422 BAD_CREDENTIALS names what is missing."""
        values = {name: value.get_secret_value() for name, value in data.secrets.items()}
        actor = actor_of(request, identity)
        return _told(await door.run(lambda tx: credentials.set(tx, actor, account_id, values)))

    @get("/broker/accounts/{account_id:uuid}/credentials", caller=Caller.USER)
    async def show_credentials(request: HttpRequest, identity: Who, account_id: FromPath[UUID]) -> CredentialsTold:
        """Return which credentials your account has, without their values. 409 NO_CREDENTIALS when it has none."""
        async with door.read() as tx:
            return _told(await credentials.show(tx, actor_of(request, identity), account_id))

    @delete("/broker/accounts/{account_id:uuid}/credentials", caller=Caller.USER)
    async def forget_credentials(request: HttpRequest, identity: Who, account_id: FromPath[UUID]) -> None:
        """Forget the credentials of your account."""
        actor = actor_of(request, identity)
        await door.run(lambda tx: credentials.forget(tx, actor, account_id))

    @post("/broker/credentials/rotate", caller=Caller.ADMIN, status_code=200)
    async def rotate_credentials(request: HttpRequest, identity: Who, data: JSONBody[RotateBody]) -> RotationTold:
        """Wrap credentials under old keys anew, some ten thousand; repeat with `after` until `next` is null."""
        done = await credentials.rotate(door, actor_of(request, identity), data.after)
        return RotationTold(
            rewrapped=done.rewrapped, unreadable=list(done.unreadable), next=done.next, keys=dict(done.keys)
        )

    return [set_credentials, show_credentials, forget_credentials, rotate_credentials]


def actor_of(request: HttpRequest, identity: Identity) -> Actor:
    """Return who asks, and in which request."""
    return Actor(identity, exchange_of(request.scope).request_id)


def _told(about: About) -> CredentialsTold:
    return CredentialsTold(
        names=list(about.names), updated_at=about.updated_at, expires_at=about.expires_at, refused=about.refused
    )
