"""Which venues stay open: those that are used, with the credentials that their accounts have now."""

import asyncio
from collections.abc import Mapping
from uuid import UUID, uuid4

from sqlalchemy import text

from services.broker.ports import Account
from services.broker.service import venues as venues_of
from services.broker.service.venues import Venues
from tests.broker.brokerage import NOW, USER, Brokerage
from tests.conftest import ManualClock, eventually
from tests.fakes.venue import MemoryAdapter
from tests.fakes.venue_books import PLAIN

CREDENTIALS = text("""
    insert into credentials (account_id, version, names, key_id, wrapped, body, updated_at)
    values (:account, :version, '{}', 'k', '', '', :at)
    on conflict (account_id) do update set version = excluded.version""")


async def changes(brokerage: Brokerage, account: UUID) -> None:
    """Let the account have other credentials."""
    async with brokerage.service.db.transaction() as tx:
        await tx.execute(CREDENTIALS, account=account, version=uuid4(), at=brokerage.clock())


async def test_a_stream_is_opened_anew_with_new_credentials_and_ends_with_its_account(brokerage: Brokerage) -> None:
    account = await brokerage.account()
    desk, monitors = brokerage.desk(account), brokerage.monitors
    monitors.poll_s = 0.02
    running = asyncio.create_task(monitors.run())
    try:
        await eventually(lambda: len(desk.listeners) == 1)
        first, venue = desk.listeners[0], monitors._venues._open[account].venue
        await changes(brokerage, account)
        await eventually(lambda: len(desk.listeners) == 1 and desk.listeners[0] is not first)
        assert monitors._venues._open[account].venue is not venue
        assert (await brokerage.ask("DELETE", f"/broker/accounts/{account}"))[0] == 204
        await eventually(lambda: desk.listeners == [] and monitors._venues._open == {})
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_venue_that_nobody_used_for_long_is_closed_but_not_while_somebody_listens() -> None:
    adapter = MemoryAdapter(PLAIN, ManualClock(NOW))
    idle, used, heard, new = (Account(uuid4(), USER, adapter.name, "paper") for _ in range(4))

    async def secrets(_: Account) -> Mapping[str, str]:
        return {"key": "secret"}

    venues = Venues([adapter], secrets)
    async with venues.kept(heard):
        for one in (idle, used):
            await venues.of(one)
        for one in (idle, heard):
            venues._open[one.id].used_at -= venues_of.IDLE_S + 1
        await venues.of(new)
        assert venues._open.keys() == {used.id, heard.id, new.id}
    assert not venues._kept
