"""What the tests of credentials, OAuth and callbacks share: accounts, keys, and routes over Postgres."""

import base64
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast
from uuid import UUID

import httpx

from services.broker.ports import Account
from services.broker.store.accounts import AccountStore
from shared.clock import new_id
from shared.db import Database
from shared.identity import HEADER, Identity, Role, Signer, identity_secret
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import ManualClock

NOW: Final = datetime(2026, 11, 22, 15, 0, tzinfo=UTC)
OLD: Final = "old:" + base64.b64encode(b"o" * 32).decode()
NEW: Final = "new:" + base64.b64encode(b"n" * 32).decode()


async def an_account(db: Database, venue: str = "alpaca", user_id: UUID | None = None) -> Account:
    """Return a new account, kept."""
    account = Account(new_id(), user_id or new_id(), venue, "paper")
    async with db.transaction() as tx:
        await AccountStore().add(tx, account, "mine", {}, NOW)
    return account


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls the service's routes as the gateway would for a user."""

    http: httpx.AsyncClient
    clock: ManualClock

    async def ask(
        self, method: str, path: str, user_id: UUID | None = None, role: Role = "user", **more: Any
    ) -> httpx.Response:
        headers: dict[str, str] = more.pop("headers", {})
        if user_id is not None:
            signer = Signer(identity_secret(SharedSettings()), self.clock)
            token = signer.sign(Identity(user_id, role), audience="broker", request_id="r-1")
            headers = {**headers, HEADER: token}
        return await self.http.request(method, path, headers=headers, **more)


def a_service(database_url: str, clock: ManualClock) -> Service:
    """Return the brokerage without anything in it."""
    return Service("broker", Environment(SharedSettings(database_url=database_url), clock))


@asynccontextmanager
async def calling(service: Service, clock: ManualClock) -> AsyncGenerator[Caller]:
    """Serve a service's routes in memory; its pool is closed at the end."""
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://broker") as http:
        yield Caller(http, clock)
    await service.db.close()
