"""Fresh credentials: an access token is refreshed before it ends, by one caller at a time over all replicas.

Who refreshes takes a lease first, in a transaction of its own, so that no connection is held while the venue is asked.
The others use the old token while it is good, else they wait for the fresh one. The answer is written before anybody
uses it, by a task that nobody's cancellation breaks off, and the write is repeated while Postgres is away: a refresh
token that the venue changes is lost only with the process. Then the venue says so at the next refresh, and the account
is to be connected anew.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from prometheus_client import Counter

from services.broker.domain.credentials import Secrets
from services.broker.domain.oauth import REFRESH, Granted, OAuthVenue
from services.broker.ports import Account, GrantRefused, TokenEndpoint
from services.broker.service.vault import Kept, Vault
from services.broker.store.credentials import CredentialStore
from shared.clock import Clock, NewId
from shared.db import is_rerun
from shared.errors import Transient
from shared.messaging.door import Door
from shared.work import OutcomeUnknown

_log = logging.getLogger(__name__)
T = TypeVar("T")

REQUEST_S: Final = 20.0
LEASE: Final = timedelta(seconds=60)
REST: Final = timedelta(seconds=5)
WAIT_S: Final = 30.0
POLL_S: Final = 0.05
WRITE_S: Final = 60.0
IN_USE: Final = timedelta(seconds=5)

REFRESHED: Final = Counter(
    "openbell_broker_oauth_refreshes_total", "Refreshes of OAuth tokens, by how they ended", ["venue", "outcome"]
)  # done, refused, failed


class Tasks:
    """Runs what must not be broken off in the middle, whoever stops waiting for it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run it to its end; cancelled, this returns at once and the work goes on."""
        return await asyncio.shield(self.start(work))

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start it."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def close(self) -> None:
        """Wait for the end of all of it; cancelled, the work goes on."""
        if self._running:
            await asyncio.wait(self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # it was told to whoever still waited


class Refresher:
    """Returns credentials that are good now. `venues` are those with OAuth, by name."""

    def __init__(
        self,
        door: Door,
        vault: Vault,
        store: CredentialStore,
        endpoint: TokenEndpoint,
        venues: Mapping[str, OAuthVenue],
        *,
        clock: Clock,
        new_id: NewId,
    ) -> None:
        self._door = door
        self._vault = vault
        self._store = store
        self._endpoint = endpoint
        self._venues = venues
        self._clock = clock
        self._new_id = new_id
        self._tasks = Tasks()
        self._refreshing: dict[UUID, asyncio.Task[Secrets]] = {}

    async def secrets(self, account: Account) -> Secrets:
        """Return an account's credentials, refreshed where it is time.

        Raises NoCredentials, Unreadable, GrantRefused, and Transient while the venue gives no fresh token.
        """
        async with self._door.read() as tx:
            kept = await self._vault.kept(tx, account)
        if not self._due(account, kept):
            return kept.secrets
        running = self._refreshing.get(account.id)
        if running is None:
            running = self._refreshing[account.id] = self._tasks.start(self._refresh(account))
            running.add_done_callback(lambda _: self._refreshing.pop(account.id, None))
        return await asyncio.shield(running)

    async def close(self) -> None:
        """Wait for what is under way, so that no token is lost."""
        await self._tasks.close()

    def _due(self, account: Account, kept: Kept) -> bool:
        renewable = account.venue in self._venues and REFRESH in kept.secrets
        return renewable and kept.refresh_at is not None and kept.refresh_at <= self._clock()

    async def _refresh(self, account: Account) -> Secrets:
        try:
            async with asyncio.timeout(WAIT_S):
                while (taken := await self._take(account)) is None:  # noqa: ASYNC110 - it is another process's event
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Transient("somebody else refreshes these credentials, and takes long", retry_after_s=5) from None
        return taken if isinstance(taken, Secrets) else await self._renew(account, *taken)

    async def _take(self, account: Account) -> Secrets | tuple[Kept, UUID] | None:
        """Return what to use; or what to refresh under which lease; or None while somebody else refreshes."""
        async with self._door.transaction() as tx:
            kept = await self._vault.kept(tx, account, lock=True)
            now = self._clock()
            if not self._due(account, kept):
                return kept.secrets
            if kept.refused_at is not None:
                return self._usable(kept, GrantRefused())
            if kept.lease_until is not None and kept.lease_until > now:
                if kept.lease is None:
                    return self._usable(kept, Transient("the venue gave no fresh token just now", retry_after_s=5))
                return kept.secrets if self._good(kept) else None
            lease = self._new_id()
            await self._store.lease(tx, account.id, lease, now + LEASE)
            return kept, lease

    async def _renew(self, account: Account, kept: Kept, lease: UUID) -> Secrets:
        venue = self._venues[account.venue]
        try:
            async with asyncio.timeout(REQUEST_S):
                granted = await self._endpoint.ask(venue, venue.refresh_grant(kept.secrets[REFRESH]))
        except GrantRefused as refused:
            REFRESHED.labels(venue.name, "refused").inc()
            _log.warning("broker.oauth_refused", extra={"account": str(account.id), "venue": venue.name})
            await written(lambda: self._refused(account, kept))
            return self._usable(kept, refused)
        except (Transient, OutcomeUnknown, TimeoutError) as error:
            REFRESHED.labels(venue.name, "failed").inc()
            why = str(error) or type(error).__name__
            _log.warning("broker.oauth_failed", extra={"account": str(account.id), "venue": venue.name, "why": why})
            await written(lambda: self._rest(account, lease))
            return self._usable(kept, Transient(f"no fresh token: {why}", retry_after_s=5))
        secrets = await written(lambda: self._keep(account, kept, granted))
        REFRESHED.labels(venue.name, "done").inc()
        return secrets

    async def _keep(self, account: Account, kept: Kept, granted: Granted) -> Secrets:
        """Write what the venue gave, unless other credentials were set meanwhile; return what is kept then."""
        secrets = granted.secrets(kept.secrets)
        async with self._door.transaction() as tx:
            if not await self._vault.replace(tx, account, kept.version, secrets, granted.good(self._clock())):
                _log.info("broker.oauth_overtaken", extra={"account": str(account.id), "venue": account.venue})
            return await self._vault.get(tx, account)

    async def _refused(self, account: Account, kept: Kept) -> None:
        async with self._door.transaction() as tx:
            await self._store.refused(tx, account.id, kept.version, self._clock())

    async def _rest(self, account: Account, lease: UUID) -> None:
        async with self._door.transaction() as tx:
            await self._store.rest(tx, account.id, lease, self._clock() + REST)

    def _good(self, kept: Kept) -> bool:
        return kept.expires_at is not None and kept.expires_at > self._clock() + IN_USE

    def _usable(self, kept: Kept, error: Exception) -> Secrets:
        """Return what can still be used for a while; else raise."""
        if self._good(kept):
            return kept.secrets
        raise error


async def written(write: Callable[[], Awaitable[T]]) -> T:
    """Write, again and again for a minute while Postgres is away: what is written exists nowhere else."""
    clock = asyncio.get_running_loop().time
    until = clock() + WRITE_S
    while True:
        try:
            return await write()
        except Exception as error:
            if not is_rerun(error):
                raise
            if clock() > until:
                _log.exception("broker.tokens_lost")
                raise
        await asyncio.sleep(POLL_S)
