"""Users, their settings and their API keys."""

from typing import Final, cast
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from litestar.types import Receive, Scope

from services.api.coalesce import Coalescer
from services.api.gate import SIGNUP, Gate, credential_of
from services.api.principals import Principals
from services.api.routes.bodies import NewKey, Onboarding, SettingsPatch, SignUp
from services.api.routes.common import HttpRequest, by
from services.api.service import Keys, Users
from services.api.service.users import SettingsView, show_sign_up
from shared.clock import Clock, NewId
from shared.errors import Invalid, NotFound
from shared.http import Caller, Who
from shared.http.callers import current_identity
from shared.http.json import json_response
from shared.idempotency import HEADER, MalformedKey, answer_once, parse_key
from shared.identity import Identity, own
from shared.messaging.door import Door

MIN_SIGNUP_KEY: Final = 16


def sign_up_routes(
    users: Users, keys: Keys, principals: Principals, gate: Gate, *, door: Door, clock: Clock, new_id: NewId
) -> list[HTTPRouteHandler]:
    """Return the one route that makes users."""

    @post("/api/users", caller=Caller.PUBLIC, limit=SIGNUP, status_code=201, tags=["users"])
    async def sign_up(request: HttpRequest, data: JSONBody[SignUp]) -> Response[bytes]:
        """Sign up. The answer shows the first API key, this once.

        Sent again with the same Idempotency-Key (at least 16 characters, for it guards the key) it is answered again.
        A caller who sends the token of a trusted issuer is known by that token from then on.
        """
        for raw in request.headers.getall(HEADER, []):
            if len(parse_key(raw)) < MIN_SIGNUP_KEY:
                raise MalformedKey(f"signing up takes an Idempotency-Key of at least {MIN_SIGNUP_KEY} characters")
        credential = credential_of(request.scope)
        external_id = None
        if credential is not None:
            if credential.startswith("ob_"):
                raise Invalid("whoever has an API key has signed up already")
            external_id = await principals.subject(credential)
        circumstances = by(request, None, clock, new_id)
        return await answer_once(
            request,
            door,
            lambda tx: users.sign_up(tx, circumstances, data.email, external_id=external_id),
            show=show_sign_up(keys.show),
            caller=f"address/{gate.address(request.scope)}",
        )

    return [sign_up]


def user_routes(users: Users, door: Door, clock: Clock, new_id: NewId) -> list[HTTPRouteHandler]:
    """Return the routes of a user's profile."""
    settings = Coalescer(lambda ids: _read_settings(users, door, ids))

    @post("/api/user/{user_id:uuid}/onboarding", caller=Caller.USER, status_code=200, tags=["users"])
    async def onboard(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[Onboarding]
    ) -> Response[bytes]:
        """Tell how you invest and watch your first stocks."""
        own(identity, user_id)
        circumstances = by(request, identity, clock, new_id)
        return await answer_once(
            request,
            door,
            lambda tx: users.onboard(tx, circumstances, user_id, data.investing_style, data.tickers),
            status_code=200,
        )

    async def read(identity: Identity, user_id: UUID) -> bytes:
        own(identity, user_id)
        found = await settings.get(user_id)
        if found is None:
            raise NotFound("there is no such user")
        return found

    async def quick(scope: Scope, _: Receive) -> bytes:
        return await read(await current_identity(scope), cast("UUID", scope["path_params"]["user_id"]))

    @get("/api/user/{user_id:uuid}/settings", caller=Caller.USER, quick=quick, tags=["users"])
    async def read_settings(identity: Who, user_id: FromPath[UUID]) -> SettingsView:
        """Return your settings."""
        return msgspec.json.decode(await read(identity, user_id), type=SettingsView)

    @patch("/api/user/{user_id:uuid}/settings", caller=Caller.USER, tags=["users"])
    async def change_settings(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[SettingsPatch]
    ) -> Response[bytes]:
        """Change some of your settings; returns all of them."""
        own(identity, user_id)
        circumstances = by(request, identity, clock, new_id)
        changes = data.model_dump(exclude_unset=True)
        return json_response(await door.run(lambda tx: users.change_settings(tx, circumstances, user_id, changes)))

    return [onboard, read_settings, change_settings]


def key_routes(keys: Keys, door: Door, clock: Clock, new_id: NewId) -> list[HTTPRouteHandler]:
    """Return the routes of a user's API keys."""

    @get("/api/user/{user_id:uuid}/keys", caller=Caller.USER, tags=["keys"])
    async def list_keys(identity: Who, user_id: FromPath[UUID]) -> Response[bytes]:
        """List your API keys, without the keys themselves."""
        own(identity, user_id)
        async with door.read() as tx:
            return json_response({"keys": await keys.list(tx, user_id)})

    @post("/api/user/{user_id:uuid}/keys", caller=Caller.USER, status_code=201, tags=["keys"])
    async def add_key(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[NewKey]
    ) -> Response[bytes]:
        """Add an API key. The answer shows it, this once."""
        own(identity, user_id)
        circumstances = by(request, identity, clock, new_id)
        return await answer_once(
            request,
            door,
            lambda tx: keys.create(tx, circumstances, identity, user_id, name=data.name, role=data.role),
            show=keys.show_added,
        )

    @delete("/api/user/{user_id:uuid}/keys/{key_id:uuid}", caller=Caller.USER, tags=["keys"])
    async def delete_key(request: HttpRequest, identity: Who, user_id: FromPath[UUID], key_id: FromPath[UUID]) -> None:
        """End an API key. It may work a few seconds longer where it was used just now."""
        own(identity, user_id)
        circumstances = by(request, identity, clock, new_id)
        await door.run(lambda tx: keys.delete(tx, circumstances, user_id, key_id))

    return [list_keys, add_key, delete_key]


async def _read_settings(users: Users, door: Door, ids: list[UUID]) -> dict[UUID, bytes]:
    async with door.read() as tx:
        return await users.settings(tx, ids)
