"""The routes of OAuth over a venue that has it, for tests of connecting and of refreshing."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from os import urandom
from typing import Any, Final
from uuid import UUID

import httpx

from services.broker.adapters.oauth_tokens import HttpTokens
from services.broker.domain.oauth import OAuthVenue
from services.broker.ports import Account, TokenEndpoint
from services.broker.routes.oauth import handlers
from services.broker.service.credentials import Credentials
from services.broker.service.oauth import OAuth
from services.broker.service.refresh import Refresher
from services.broker.service.vault import Vault
from services.broker.store.accounts import AccountStore
from services.broker.store.credentials import CredentialStore
from services.broker.store.oauth import OAuthStore
from shared.clock import new_id
from shared.db import Database
from shared.envelope import Envelope, Keys
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.service import Service
from tests.broker.credentials import NEW, NOW, Caller, a_service, an_account, calling
from tests.conftest import ManualClock
from tests.fakes.oauth import FakeOAuth
from tests.fakes.serving import serving

PAGE: Final = "https://app.example/connected"


def at_venue(url: str, **more: Any) -> OAuthVenue:
    about = OAuthVenue(
        "alpaca", "openbell", "the-client-secret", f"{url}/authorize", f"{url}/token", PAGE, ("trading",)
    )
    return replace(about, **more)


@dataclass
class Broker:
    """The routes, what lies behind them, and the venue."""

    service: Service
    clock: ManualClock
    fake: FakeOAuth
    vault: Vault
    about: OAuthVenue
    account: Account
    endpoint: HttpTokens
    caller: Caller
    databases: Callable[[str], Database]

    @property
    def user(self) -> UUID:
        return self.account.user_id

    async def start(self, user_id: UUID | None = None, account: Account | None = None) -> httpx.Response:
        query = {"account_id": str((account or self.account).id)}
        return await self.caller.ask("GET", "/broker/oauth/alpaca/start", user_id or self.user, params=query)

    async def back(self, query: dict[str, str], user_id: UUID | None = None, venue: str = "alpaca") -> httpx.Response:
        return await self.caller.ask("GET", f"/broker/oauth/{venue}/callback", user_id or self.user, params=query)

    async def connect(self) -> httpx.Response:
        return await self.back(self.fake.consent((await self.start()).json()["url"]))

    async def tokens(self) -> dict[str, str]:
        async with self.service.db.read() as tx:
            return dict(await self.vault.get(tx, self.account))

    def refresher(self, endpoint: TokenEndpoint | None = None) -> Refresher:
        """Another replica."""
        db = self.databases("broker")
        door = Door(db, Outbox("broker", lambda: None))
        return Refresher(
            door,
            self.vault,
            CredentialStore(),
            endpoint or self.endpoint,
            {"alpaca": self.about},
            clock=self.clock,
            new_id=new_id,
        )


@asynccontextmanager
async def connecting(database_url: str, open_database: Callable[[str], Database]) -> AsyncGenerator[Broker]:
    """Serve the routes over a venue that has OAuth."""
    clock, fake, endpoint = ManualClock(NOW), FakeOAuth(), HttpTokens(timeout_s=5)
    service = a_service(database_url, clock)
    envelope = Envelope(Keys(NEW), urandom)
    vault = Vault(CredentialStore(), envelope, clock=clock, new_id=new_id)
    credentials = Credentials(vault, AccountStore(), lambda _: (), clock=clock, new_id=new_id)
    with serving(fake, "oauth") as url:
        about = at_venue(url)
        venues = {"alpaca": about, "other": replace(about, name="other")}
        oauth = OAuth(
            service.door,
            vault,
            credentials,
            endpoint,
            venues,
            store=OAuthStore(),
            envelope=envelope,
            clock=clock,
            random_bytes=urandom,
        )
        service.serve([*handlers(oauth)])
        account = await an_account(service.db)
        async with calling(service, clock) as caller:
            yield Broker(service, clock, fake, vault, about, account, endpoint, caller, open_database)
            fake.hold.set()
            await oauth.close()
            await endpoint.close()


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]
