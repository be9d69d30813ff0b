"""Open sockets, and what each is sent: its user's feed, from where it left off and on as it grows.

A socket reads rows of the feed after its position, sends them and waits to hear that there are more. Postgres tells
every replica whose feeds have grown (NOTIFY, at the commit that made them grow). Nothing is queued: a socket holds one
page at most, and one that does not take a message in time is dropped.

What would surprise you: whoever is told by nobody misses nothing. When the connection that listens is lost and there
again, every socket looks once.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from prometheus_client import Counter, Gauge

from services.api.principals import Session
from services.api.service.feed import Feed, Start
from services.api.store import feed
from shared.clock import Clock
from shared.db import Database, DatabaseUnavailable, Tx, is_rerun
from shared.errors import RateLimited, Transient

_log = logging.getLogger(__name__)

OPEN: Final = Gauge("openbell_realtime_sockets", "WebSockets open now")
SENT: Final = Counter("openbell_realtime_messages_sent_total", "Messages sent to WebSockets")
CLOSED: Final = Counter(
    "openbell_realtime_closed_total",
    "WebSockets closed, by reason: left (by the client, or by our end), slow (dropped), spoke, revoked, trouble.",
    ("reason",),
)
RETRY_S: Final = 1.0

_LOST: Final = (
    DatabaseUnavailable,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

Socket = WebSocket[Any, Any, Any]


class TooManySockets(RateLimited):
    """Close one of your sockets first."""

    code = "TOO_MANY_SOCKETS"


@dataclass(frozen=True, slots=True)
class End:
    """Why a socket ends, with the code that it is closed with; None where it is closed already."""

    reason: str
    code: int | None = None
    message: str = ""


LEFT: Final = End("left")
SLOW: Final = End("slow", 4408, "too slow: resume where you left off")
SPOKE: Final = End("spoke", 1008, "nothing is read here")
REVOKED: Final = End("revoked", 4401, "this credential has ended")
TROUBLE: Final = End("trouble", 1013, "try again later")


@dataclass(frozen=True, slots=True)
class Limits:
    """How many sockets there may be in this process, and how long things may take."""

    sockets: int = 5_000
    of_a_user: int = 10
    send_s: float = 10.0
    check_s: float = 2.0


class Hello(msgspec.Struct, frozen=True, tag="hello", tag_field="type"):
    """The first message. With `gap`, what was told before `cursor` is kept no more: ask for the lists."""

    cursor: str
    gap: bool


@dataclass(eq=False, slots=True)
class _Seat:
    session: Session
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Future[End] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def end(self, why: End) -> None:
        if not self.over.done():
            self.over.set_result(why)


class Realtime:
    """The sockets of this process. `run()` hears of what there is to send; it is a runner of the service."""

    def __init__(self, db: Database, feeds: Feed, clock: Clock, limits: Limits) -> None:
        self.name = "realtime"
        self._db = db
        self._feeds = feeds
        self._clock = clock
        self._limits = limits
        self._seats: defaultdict[UUID, set[_Seat]] = defaultdict(set)
        self._open = 0
        self._trouble = "not started"

    def health(self) -> tuple[bool, str]:
        """Return whether it hears of what is new, and how many sockets there are."""
        return not self._trouble, self._trouble or f"{self._open} sockets"

    # --- a socket -----------------------------------------------------------------------------

    async def serve(self, socket: Socket, session: Session, since: int | None) -> None:
        """Serve one socket to its end. Raises TooManySockets and Transient before it is accepted."""
        async with self._seated(session) as seat:
            start = await self._feeds.start(session.identity.user_id, since)
            await socket.accept()
            end = await self._until_end(socket, seat, start)
            CLOSED.labels(end.reason).inc()
            if end.code is not None:
                await self._close(socket, end)

    @asynccontextmanager
    async def _seated(self, session: Session) -> AsyncGenerator[_Seat]:
        user_id = session.identity.user_id
        if len(self._seats.get(user_id, ())) >= self._limits.of_a_user:
            raise TooManySockets(retry_after_s=RETRY_S, most=self._limits.of_a_user)
        if self._open >= self._limits.sockets:
            raise Transient("there are too many sockets here", retry_after_s=RETRY_S)
        seat = _Seat(session)
        self._seats[user_id].add(seat)
        self._open += 1
        OPEN.inc()
        try:
            yield seat
        finally:
            OPEN.dec()
            self._open -= 1
            self._seats[user_id].discard(seat)
            if not self._seats[user_id]:
                del self._seats[user_id]

    async def _until_end(self, socket: Socket, seat: _Seat, start: Start) -> End:
        hearing = asyncio.create_task(self._hear(socket))
        telling = asyncio.create_task(self._tell(socket, seat, start))
        try:
            await asyncio.wait((hearing, telling, seat.over), return_when=asyncio.FIRST_COMPLETED)
            return next(one.result() for one in (seat.over, hearing, telling) if one.done())
        finally:
            for task in (hearing, telling):
                task.cancel()
            await asyncio.gather(hearing, telling, return_exceptions=True)

    async def _hear(self, socket: Socket) -> End:
        try:
            message = await socket.receive()
        except WebSocketDisconnect:
            return LEFT
        return LEFT if message["type"] == "websocket.disconnect" else SPOKE

    async def _tell(self, socket: Socket, seat: _Seat, start: Start) -> End:
        position, user_id = start.position, seat.session.identity.user_id
        try:
            await self._send(socket, msgspec.json.encode(Hello(str(position), start.gap)))
            while True:
                seat.grown.clear()
                rows = await self._feeds.after(user_id, position)
                for position, message in rows:  # noqa: B007 - the last one is where to go on
                    await self._send(socket, message)
                    SENT.inc()
                if not rows:
                    await seat.grown.wait()
        except TimeoutError:
            return SLOW
        except WebSocketDisconnect:
            return LEFT
        except Exception as error:  # noqa: BLE001 - it ends this socket and no other
            if not isinstance(error, Transient) and not is_rerun(error):
                _log.exception("realtime_failed", extra={"user_id": str(user_id)})
            return TROUBLE

    async def _send(self, socket: Socket, message: bytes) -> None:
        async with asyncio.timeout(self._limits.send_s):
            await socket.send_data(message.decode(), "text")

    async def _close(self, socket: Socket, end: End) -> None:
        try:
            async with asyncio.timeout(self._limits.send_s):
                await socket.close(end.code or 1000, end.message)
        except (TimeoutError, WebSocketDisconnect, RuntimeError, OSError):
            _log.info("realtime_not_closed", extra={"reason": end.reason})  # it is gone already, or takes nothing

    # --- what there is to send ----------------------------------------------------------------

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                await self._listen()
            except _LOST as error:
                self._trouble = f"does not hear of what is new: {type(error).__name__}"
                _log.warning("realtime_interrupted", extra={"error": repr(error)[:300]})
                await asyncio.sleep(RETRY_S)

    async def _listen(self) -> None:
        connection = await self._db.connect()
        try:
            await connection.add_listener(feed.CHANNEL, self._notified)
            self._trouble = ""
            self._wake(self._seats)
            while True:
                await self._end_the_ended(Tx(connection))
                await asyncio.sleep(self._limits.check_s)
        finally:
            connection.terminate()

    def _notified(self, *args: object) -> None:
        self._wake(UUID(hex=user) for user in str(args[-1]).split(","))

    def _wake(self, users: Iterable[UUID]) -> None:
        for user_id in users:
            for seat in self._seats.get(user_id, ()):
                seat.grown.set()

    async def _end_the_ended(self, tx: Tx) -> None:
        """End the sockets whose key was ended or whose token is over; it shows too that the connection lives."""
        seats = [seat for seats in self._seats.values() for seat in seats]
        asked = {seat.session.key_id for seat in seats if seat.session.key_id is not None}
        live = await feed.live_keys(tx, list(asked))
        now = self._clock().timestamp()
        for seat in seats:
            key_id, ends_at = seat.session.key_id, seat.session.ends_at
            if (key_id is not None and key_id not in live) or (ends_at is not None and ends_at <= now):
                seat.end(REVOKED)
