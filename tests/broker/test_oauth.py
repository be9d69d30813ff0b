"""Accounts are connected by OAuth, once for each state and for its user only; tokens are refreshed by one at a time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from os import urandom
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from services.broker.adapters.oauth_tokens import HttpTokens
from services.broker.domain.credentials import Secrets
from services.broker.domain.oauth import Granted, OAuthVenue, challenge, granted_of
from services.broker.ports import Account, GrantRefused, TokenEndpoint
from services.broker.routes.oauth import handlers
from services.broker.service.credentials import Credentials
from services.broker.service.oauth import OAuth
from services.broker.service.refresh import LEASE, Refresher
from services.broker.service.vault import NoCredentials, Vault
from services.broker.store.accounts import AccountStore
from services.broker.store.credentials import CredentialStore
from services.broker.store.oauth import OAuthStore
from shared.clock import new_id
from shared.db import Database, DatabaseUnavailable
from shared.envelope import Envelope, Keys
from shared.errors import Transient
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from shared.service import Service
from shared.work import Busy, OutcomeUnknown
from tests.broker.credentials import NEW, NOW, Caller, a_service, an_account, calling
from tests.conftest import ManualClock, eventually
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


@pytest.fixture
async def broker(database_url: str, open_database: Callable[[str], Database]) -> AsyncIterator[Broker]:
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


# Away and back


async def test_the_user_is_sent_to_the_venue_with_a_state_and_a_challenge(broker: Broker):
    answer = await broker.start()
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    url = urlsplit(answer.json()["url"])
    asked = {name: value[0] for name, value in parse_qs(url.query).items()}
    assert url.path == "/authorize"
    assert asked.pop("state")
    assert len(asked.pop("code_challenge")) == 43
    assert asked == {
        "response_type": "code",
        "client_id": "openbell",
        "redirect_uri": PAGE,
        "scope": "trading",
        "code_challenge_method": "S256",
    }


async def test_back_from_the_venue_the_account_has_tokens_and_no_answer_shows_them(
    broker: Broker, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    answer = await broker.connect()
    assert answer.status_code == 200
    assert answer.json() == {"account_id": str(broker.account.id), "expires_at": "2026-11-22T15:15:00Z"}
    assert await broker.tokens() == {"access_token": "access-secret-1", "refresh_token": "refresh-secret-1"}
    assert challenge(broker.fake.grants[0]["code_verifier"])
    async with broker.service.db.read() as tx:
        told = [bytes(row["value"]) for row in await tx.fetch(text("select value from outbox"))]
        states = await tx.fetch(text("select * from oauth_states"))
    assert b"connect.account" in b"".join(told)
    assert states == []
    shown = answer.text + caplog.text + repr(told)
    for secret in ("access-secret", "refresh-secret", "the-client-secret", broker.fake.grants[0]["code_verifier"]):
        assert secret not in shown


async def test_neither_state_nor_verifier_lies_in_the_table(broker: Broker):
    answer = await broker.start()
    state = broker.fake.consent(answer.json()["url"])["state"]
    async with broker.service.db.read() as tx:
        (row,) = await tx.fetch(text("select * from oauth_states"))
    assert state.encode() not in row["digest"] + row["body"]
    assert state not in repr(dict(row))


async def test_a_state_is_good_once(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    assert (await broker.back(query)).status_code == 200
    assert code_of(await broker.back(query)) == (400, "OAUTH_STATE_INVALID")
    assert len(broker.fake.grants) == 1


async def test_of_two_who_come_back_with_one_state_one_gets_through(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    answers = await asyncio.gather(*(broker.back(query) for _ in range(5)))
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400, 400]
    assert len(broker.fake.grants) == 1


async def test_a_state_is_of_no_use_to_another_user_and_stays_good_for_its_own(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    assert code_of(await broker.back(query, new_id())) == (400, "OAUTH_STATE_INVALID")
    assert code_of(await broker.back(query, venue="other")) == (400, "OAUTH_STATE_INVALID")
    assert broker.fake.grants == []
    assert (await broker.back(query)).status_code == 200


async def test_a_state_ends_after_ten_minutes(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    broker.clock.advance(600)
    assert code_of(await broker.back(query)) == (400, "OAUTH_STATE_INVALID")
    assert broker.fake.grants == []


async def test_another_start_makes_the_first_one_void(broker: Broker):
    first = broker.fake.consent((await broker.start()).json()["url"])
    second = broker.fake.consent((await broker.start()).json()["url"])
    assert code_of(await broker.back(first)) == (400, "OAUTH_STATE_INVALID")
    assert (await broker.back(second)).status_code == 200


async def test_only_the_owner_of_an_account_of_that_venue_may_start(broker: Broker):
    assert code_of(await broker.start(new_id())) == (404, "UNKNOWN_ACCOUNT")
    elsewhere = await an_account(broker.service.db, "tastytrade", broker.user)
    assert code_of(await broker.start(account=elsewhere)) == (404, "UNKNOWN_ACCOUNT")
    query = {"account_id": str(broker.account.id)}
    unknown = await broker.caller.ask("GET", "/broker/oauth/nobody/start", broker.user, params=query)
    assert code_of(unknown) == (404, "OAUTH_NOT_CONFIGURED")


async def test_an_account_that_was_closed_meanwhile_gets_no_tokens(broker: Broker):
    query = broker.fake.consent((await broker.start()).json()["url"])
    async with broker.service.db.transaction() as tx:
        await AccountStore().close(tx, broker.account.id, NOW)
    assert code_of(await broker.back(query)) == (409, "ACCOUNT_CLOSED")
    with pytest.raises(NoCredentials):
        await broker.tokens()


async def test_a_user_who_says_no_is_told_so_and_the_state_is_used(broker: Broker):
    state = broker.fake.consent((await broker.start()).json()["url"])["state"]
    assert code_of(await broker.back({"state": state, "error": "access_denied"})) == (400, "OAUTH_DENIED")
    assert code_of(await broker.back({"state": state, "code": "code-1"})) == (400, "OAUTH_STATE_INVALID")
    assert code_of(await broker.back({"state": state})) == (422, "VALIDATION_ERROR")


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        ("busy", (503, "OAUTH_NOT_EXCHANGED")),
        ("broken", (503, "OAUTH_NOT_EXCHANGED")),
        ("garbage", (503, "OAUTH_NOT_EXCHANGED")),
        ("client", (503, "OAUTH_NOT_EXCHANGED")),
        (None, (400, "OAUTH_GRANT_REFUSED")),
    ],
)
async def test_an_exchange_that_fails_says_so_and_shows_nothing(
    broker: Broker, fault: Any, answer: tuple[int, str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    query = broker.fake.consent((await broker.start()).json()["url"])
    broker.fake.faults = [fault] if fault else []
    if fault is None:
        query["code"] = "a-wrong-code"
    given = await broker.back(query)
    assert code_of(given) == answer
    (grant,) = broker.fake.grants
    shown = given.text + caplog.text.replace(f"code={query['code']}", "")  # the test's own client logs its address
    for secret in ("the-client-secret", grant["code_verifier"], query["code"]):
        assert secret not in shown


async def test_a_venue_without_pkce_and_with_json_is_spoken_to_as_it_likes(broker: Broker):
    about = replace(broker.about, pkce=False, body="json")
    query = broker.fake.consent(about.address("s", "v"))
    granted = await broker.endpoint.ask(about, about.code_grant(query["code"], "v"))
    assert granted.access_token == "access-secret-1"
    assert "code_verifier" not in broker.fake.grants[0]


# Fresh tokens


async def test_a_token_is_used_until_it_is_nearly_over_and_then_refreshed_once(broker: Broker):
    await broker.connect()
    refresher = broker.refresher()
    assert (await refresher.secrets(broker.account))["access_token"] == "access-secret-1"
    assert len(broker.fake.grants) == 1
    broker.clock.advance(780)
    assert (await refresher.secrets(broker.account))["access_token"] == "access-secret-2"
    assert (await refresher.secrets(broker.account))["access_token"] == "access-secret-2"
    assert len(broker.fake.grants) == 2
    assert await broker.tokens() == {"access_token": "access-secret-2", "refresh_token": "refresh-secret-2"}


async def test_many_callers_on_many_replicas_refresh_once_and_all_get_the_fresh_token(broker: Broker):
    await broker.connect()
    broker.clock.advance(901)
    replicas = [broker.refresher() for _ in range(3)]
    got = await asyncio.gather(*(replica.secrets(broker.account) for replica in replicas for _ in range(4)))
    assert {one["access_token"] for one in got} == {"access-secret-2"}
    assert [grant["grant_type"] for grant in broker.fake.grants] == ["authorization_code", "refresh_token"]


async def test_while_one_refreshes_the_others_use_the_old_token_as_long_as_it_is_good(broker: Broker):
    await broker.connect()
    broker.clock.advance(780)
    broker.fake.hold.clear()
    first = asyncio.create_task(broker.refresher().secrets(broker.account))
    await eventually(lambda: len(broker.fake.grants) == 2)
    assert (await broker.refresher().secrets(broker.account))["access_token"] == "access-secret-1"
    broker.fake.hold.set()
    assert (await first)["access_token"] == "access-secret-2"


async def test_refresh_after_refresh_uses_the_token_that_was_given_last(broker: Broker):
    await broker.connect()
    for count in range(2, 6):
        broker.clock.advance(901)
        assert (await broker.refresher().secrets(broker.account))["access_token"] == f"access-secret-{count}"
    assert broker.fake.reused == 0


async def test_a_refresh_token_that_stays_is_kept(broker: Broker):
    broker.fake.rotates = False
    await broker.connect()
    for _ in range(2):
        broker.clock.advance(901)
        await broker.refresher().secrets(broker.account)
    assert (await broker.tokens())["refresh_token"] == "refresh-secret-1"
    assert broker.fake.reused == 0


async def test_a_caller_that_gives_up_does_not_lose_the_new_token(broker: Broker):
    await broker.connect()
    broker.clock.advance(901)
    broker.fake.hold.clear()
    refresher = broker.refresher()
    caller = asyncio.create_task(refresher.secrets(broker.account))
    await eventually(lambda: len(broker.fake.grants) == 2)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    broker.fake.hold.set()
    await refresher.close()
    assert (await broker.tokens())["refresh_token"] == "refresh-secret-2"


async def test_a_database_that_goes_away_in_between_does_not_lose_the_new_token(broker: Broker, postgres: str):
    await broker.connect()
    broker.clock.advance(901)
    broker.fake.hold.clear()
    refreshing = asyncio.create_task(broker.refresher().secrets(broker.account))
    await eventually(lambda: len(broker.fake.grants) == 2)
    name = broker.service.db.url.rpartition("/")[2]
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"alter database {name} connection limit 0")
    await admin.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")
    with pytest.raises(DatabaseUnavailable):
        await broker.databases("broker").connect()
    broker.fake.hold.set()
    await eventually(lambda: broker.fake.answered == 2)
    await asyncio.wait([refreshing], timeout=0.5)
    assert not refreshing.done()
    await admin.execute(f"alter database {name} connection limit -1")
    await admin.close()
    assert (await refreshing)["access_token"] == "access-secret-2"
    assert (await broker.tokens())["refresh_token"] == "refresh-secret-2"


async def test_a_replica_that_died_while_refreshing_holds_the_others_up_for_a_minute_at_most(broker: Broker):
    await broker.connect()
    broker.clock.advance(901)
    async with broker.service.db.transaction() as tx:
        await CredentialStore().lease(tx, broker.account.id, new_id(), broker.clock() + LEASE)
    waiting = asyncio.create_task(broker.refresher().secrets(broker.account))
    await asyncio.wait([waiting], timeout=0.3)
    assert not waiting.done()
    assert len(broker.fake.grants) == 1
    broker.clock.advance(60)
    assert (await waiting)["access_token"] == "access-secret-2"


async def test_credentials_set_during_a_refresh_are_not_written_over(broker: Broker):
    await broker.connect()
    broker.clock.advance(901)
    broker.fake.hold.clear()
    refreshing = asyncio.create_task(broker.refresher().secrets(broker.account))
    await eventually(lambda: len(broker.fake.grants) == 2)
    async with broker.service.db.transaction() as tx:
        await broker.vault.forget(tx, broker.account.id)
        await broker.vault.put(tx, broker.account, {"access_token": "set-by-hand"})
    broker.fake.hold.set()
    assert await refreshing == Secrets({"access_token": "set-by-hand"})
    assert await broker.tokens() == {"access_token": "set-by-hand"}


@pytest.mark.parametrize("fault", ["busy", "broken", "garbage", "client"])
async def test_a_venue_that_fails_is_left_alone_for_a_while_and_the_old_token_used_while_it_is_good(
    broker: Broker, fault: Any, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG)
    await broker.connect()
    broker.clock.advance(780)
    broker.fake.faults = [fault, fault]
    refresher = broker.refresher()
    for _ in range(3):
        assert (await refresher.secrets(broker.account))["access_token"] == "access-secret-1"
    assert len(broker.fake.grants) == 2
    broker.clock.advance(120)
    for _ in range(3):
        with pytest.raises(Transient) as failed:
            await refresher.secrets(broker.account)
        assert "secret" not in repr(failed.value)
    assert len(broker.fake.grants) == 3
    broker.clock.advance(6)
    assert (await refresher.secrets(broker.account))["access_token"] == "access-secret-2"
    for secret in ("access-secret", "refresh-secret", "the-client-secret"):
        assert secret not in caplog.text


async def test_an_authorisation_that_was_taken_back_is_asked_for_once_and_a_new_one_mends_it(broker: Broker):
    await broker.connect()
    broker.fake.revoked = True
    broker.clock.advance(780)
    refresher = broker.refresher()
    assert (await refresher.secrets(broker.account))["access_token"] == "access-secret-1"  # good for two minutes
    broker.clock.advance(130)
    for _ in range(3):
        with pytest.raises(GrantRefused):
            await refresher.secrets(broker.account)
    assert len(broker.fake.grants) == 2
    async with broker.service.db.read() as tx:
        about = await broker.vault.about(tx, broker.account.id)
    assert about is not None
    assert about.refused
    broker.fake.revoked = False
    await broker.connect()
    assert (await refresher.secrets(broker.account))["access_token"] == "access-secret-2"


async def test_a_token_without_an_end_is_never_refreshed(broker: Broker):
    broker.fake.lifetime_s = None
    assert (await broker.connect()).json()["expires_at"] is None
    broker.clock.advance(10 * 86_400)
    await broker.refresher().secrets(broker.account)
    assert len(broker.fake.grants) == 1


# What a venue answers


async def test_a_venue_that_does_not_answer_may_have_taken_the_grant_and_one_out_of_reach_has_not(broker: Broker):
    broker.fake.faults = ["hang"]
    impatient = HttpTokens(timeout_s=0.2)
    with pytest.raises(OutcomeUnknown):
        await impatient.ask(broker.about, broker.about.refresh_grant("x"))
    with pytest.raises(Transient):
        await impatient.ask(replace(broker.about, token_url="http://127.0.0.1:1/token"), {"refresh_token": "x"})
    broker.fake.faults = ["busy"]
    with pytest.raises(Busy):
        await broker.endpoint.ask(broker.about, broker.about.refresh_grant("x"))
    await impatient.close()


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        {"access_token": ""},
        {"access_token": 5},
        {"access_token": "a\nb"},
        {"access_token": "a", "refresh_token": 5},
        {"access_token": "a", "expires_in": "soon"},
        {"access_token": "a", "expires_in": True},
        {"access_token": "a", "expires_in": -1},
        {"access_token": "a", "expires_in": 1e300},
        {"access_token": "a", "expires_in": float("nan")},
    ],
)
def test_an_answer_without_usable_tokens_is_none(answer: Any):
    with pytest.raises(ValueError):
        granted_of(answer)


def test_tokens_and_client_secrets_do_not_show_themselves():
    assert granted_of({"access_token": "secret-a", "refresh_token": "secret-r", "expires_in": "900"}).lifetime_s == 900
    shown = repr(Granted("secret-a", "secret-r", 1.0)) + repr(at_venue("https://venue.example"))
    assert "secret-" not in shown
    assert "the-client-secret" not in shown


def test_addresses_must_be_encrypted_but_on_this_machine():
    with pytest.raises(ValueError, match="https"):
        at_venue("http://venue.example")
    at_venue("http://127.0.0.1:5")
