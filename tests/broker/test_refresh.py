"""OAuth tokens are refreshed by one at a time, whatever happens in between."""

import asyncio
import logging
from typing import Any

import asyncpg
import pytest

from services.broker.domain.credentials import Secrets
from services.broker.ports import GrantRefused
from services.broker.service.refresh import LEASE
from services.broker.store.credentials import CredentialStore
from shared.clock import new_id
from shared.db import DatabaseUnavailable
from shared.errors import Transient
from tests.broker.oauth_rig import Broker
from tests.conftest import eventually


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
