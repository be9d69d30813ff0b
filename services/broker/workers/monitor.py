"""Listens to every account's venue, on one replica at a time, and reconciles: at the start, after each gap, hourly."""

import asyncio
import contextlib
import logging
import random
import zlib
from typing import Final
from uuid import UUID

import asyncpg
from prometheus_client import Counter, Gauge

from services.broker.ports import Account, VenueRefused
from services.broker.service.reconcile import Reconcile
from services.broker.service.venues import NoSuchVenue, Venues
from services.broker.store.accounts import AccountStore, account_of
from shared.db import Connection, Database, DatabaseUnavailable, is_rerun
from shared.errors import OpenbellError, Transient
from shared.messaging.door import Door

STREAMS: Final = Gauge("openbell_broker_streams", "Accounts whose venue is being listened to", ["venue"])
GAPS: Final = Counter("openbell_broker_stream_gaps_total", "Times that a venue's stream was lost", ["venue"])
RECONCILED: Final = Counter("openbell_broker_reconciliations_total", "Reconciliations that ended", ["venue", "outcome"])

_Watched = tuple[Account, UUID | None]
"""An account, and the version of its credentials."""
LOCK: Final = zlib.crc32(b"broker/monitors")
_LOST: Final = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, DatabaseUnavailable)
_EXPECTED: Final = (OpenbellError, *_LOST)
_log = logging.getLogger(__name__)


class Monitors:
    """One listener for each open account; whoever holds the lock has them all."""

    name = "monitors"
    poll_s = 2.0
    """How often accounts are looked for, and whether this replica still leads."""
    at_once = 20
    """How many accounts are reconciled at the same time."""
    soon_s = 60.0
    """The longest pause before an account is looked at again whose positions differed."""
    longest_s = 60.0
    """The longest pause before a venue that fails is tried again."""

    def __init__(
        self,
        accounts: AccountStore,
        venues: Venues,
        reconcile: Reconcile,
        *,
        db: Database,
        door: Door,
        every_s: float,
        draw: random.Random,
    ) -> None:
        self._accounts = accounts
        self._venues = venues
        self._reconcile = reconcile
        self._db = db
        self._door = door
        self._every_s = every_s
        self._draw = draw
        self._watching: dict[_Watched, asyncio.Task[None]] = {}
        self._reconciling = asyncio.Semaphore(self.at_once)
        self._trouble = ""

    def health(self) -> tuple[bool, str]:
        """Return whether it works, and how many accounts are listened to."""
        return not self._trouble, self._trouble or f"{len(self._watching)} accounts"

    async def run(self) -> None:
        """Lead when nobody else does, until cancelled."""
        while True:
            try:
                await self._stand()
            except _LOST as error:
                self._trouble = type(error).__name__
                _log.warning("broker.monitors_interrupted", extra={"error": repr(error)[:300]})
                await asyncio.sleep(1)

    async def _stand(self) -> None:
        connection = await self._db.connect()
        try:
            while not await connection.fetchval("select pg_try_advisory_lock($1)", LOCK):
                self._trouble = ""
                await asyncio.sleep(self.poll_s)
            await self._lead(connection)
        finally:
            await self._watch_only(set())
            connection.terminate()

    async def _lead(self, connection: Connection) -> None:
        while True:
            await connection.execute("select 1")  # the lock is lost with the connection
            async with self._door.read() as tx:
                accounts = {(account_of(row), row["credentials"]) for row in await self._accounts.open(tx)}
            await self._watch_only(accounts)
            for account, credentials in sorted(accounts - self._watching.keys(), key=lambda one: one[0].id):
                task = asyncio.create_task(self._watch(account), name=f"broker {account.venue} {account.id}")
                self._watching[account, credentials] = task
            self._trouble = ""
            await asyncio.sleep(self.poll_s)

    async def _watch_only(self, accounts: set[_Watched]) -> None:
        """Stop listening to others, and close what was opened for them: accounts end, and credentials change."""
        gone = {one: self._watching.pop(one) for one in self._watching.keys() - accounts}
        for task in gone.values():
            task.cancel()
        await asyncio.gather(*gone.values(), return_exceptions=True)
        for account, _ in gone:
            await self._venues.forget(account.id)

    async def _watch(self, account: Account) -> None:
        """Listen for ever; a line that is lost is taken up again, after longer and longer pauses while it fails."""
        failures = 0
        while True:
            began, trouble = asyncio.get_running_loop().time(), ""
            try:
                await self._listen(account)
            except VenueRefused as error:
                await self._venues.forget(account.id)  # opened anew, its credentials may be others
                trouble = error.message
            except Exception as error:  # noqa: BLE001 - one account's trouble is no other's
                trouble = _said(account, error)
            GAPS.labels(account.venue).inc()
            failures = 1 if asyncio.get_running_loop().time() - began > self.longest_s else failures + 1
            _log.warning("broker.stream_lost", extra={"venue": account.venue, "error": trouble[:300]})
            await self._tell(account, trouble)
            await asyncio.sleep(min(self.longest_s, 0.5 * 2.0**failures) * self._jitter())

    async def _tell(self, account: Account, trouble: str) -> None:
        """Show the account's owner what is wrong with it, until it is reconciled."""
        with contextlib.suppress(*_LOST):
            async with self._door.transaction() as tx:
                await self._accounts.trouble(tx, account.id, trouble[:300])

    def _jitter(self) -> float:
        return 0.5 + self._draw.random() / 2

    async def _listen(self, account: Account) -> None:
        """Listen until the line is lost. What happened before is asked for once the line is open."""
        async with self._venues.kept(account) as venue, venue.stream() as updates:
            STREAMS.labels(account.venue).inc()
            reconciling = asyncio.create_task(self._keep_reconciled(account))
            try:
                async for update in updates:
                    await self._reconcile.told(account, update)
            finally:
                STREAMS.labels(account.venue).dec()
                reconciling.cancel()
                await asyncio.gather(reconciling, return_exceptions=True)
        raise Transient("the stream ended")

    async def _keep_reconciled(self, account: Account) -> None:
        failures = 0
        while True:
            try:
                venue = await self._venues.of(account)
                async with self._reconciling:
                    agreed = await self._reconcile.run(account, venue)
                RECONCILED.labels(account.venue, "done").inc()
                failures, pause_s = 0, self._every_s if agreed else min(self.soon_s, self._every_s)
            except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
                RECONCILED.labels(account.venue, "failed").inc()
                failures += 1
                refused = isinstance(error, (VenueRefused, NoSuchVenue))
                _log.warning("broker.not_reconciled", extra={"venue": account.venue, "error": repr(error)[:300]})
                await self._tell(account, _said(account, error))
                pause_s = self.longest_s if refused else min(self.longest_s, 0.5 * 2.0**failures)
            await asyncio.sleep(pause_s * self._jitter())


def _said(account: Account, error: Exception) -> str:
    """Return what is wrong in a few words; what nobody foresaw is logged with its trace."""
    if not isinstance(error, _EXPECTED) and not is_rerun(error):
        _log.error("broker.monitor_broken", exc_info=error, extra={"venue": account.venue, "account": str(account.id)})
    return error.message if isinstance(error, OpenbellError) else type(error).__name__
