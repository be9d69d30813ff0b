"""SIGKILL of the brokerage anywhere between a command and what is recorded of it: nothing doubles, nothing is in doubt.

OPENBELL_BROKER_KILLS says how often it is killed.
"""

import asyncio
import gc
import os
import pickle
import socket
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, Literal
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest

from deploy.local.kafka import RunningKafka
from services.broker.domain.orders import OVER, WORKING
from services.broker.ports import Update
from shared.clock import utc_now
from shared.identity import HEADER, Identity, Signer, identity_secret
from shared.settings import SharedSettings
from tests.broker.brokerage import SHARES
from tests.conftest import eventually
from tests.fakes.serving import serving
from tests.fakes.venue import Desk, MemoryVenue
from tests.fakes.venue_books import PLAIN

D = Decimal
KILLS = int(os.environ.get("OPENBELL_BROKER_KILLS", "6"))
GATE = 79  # an advisory lock that the test holds while the process must not go on
Place = Literal["before", "after"]
AT_VENUE: dict[str, tuple[str, Place]] = {
    "a submit that has not arrived": ("submit", "before"),
    "a submit that was not answered": ("submit", "after"),
    "a cancel that was not answered": ("cancel", "after"),
    "a replacement that was not answered": ("replace", "after"),
}
IN_DATABASE = {
    "before the order is kept": "before insert on broker.orders for each row",
    "before it is judged": "before update on broker.orders for each row when (new.state = 'pending_submit')",
    "before the submit is begun": "before update on broker.sendings for each row when (new.status = 'started')",
    "before the answer is kept": "before update on broker.sendings for each row when (new.status = 'done')",
    "before it is told": "before insert on broker.outbox for each row when (new.topic = 'broker.orders')",
}
POINTS = [*AT_VENUE, *IN_DATABASE]


class StandIn:
    """The venue, served; it fills what comes, and holds a request that the test waits for."""

    def __init__(self) -> None:
        self.desk = Desk(PLAIN)
        self.frames: list[Update] = []
        self.hold: tuple[str, Place] | None = None
        self.held = threading.Event()
        self._venue = MemoryVenue(self.desk)
        self._random = Random(5)
        self._queue: asyncio.Queue[Update | None] = asyncio.Queue()
        self.desk.listeners.append(self._queue)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        method = scope["path"].removeprefix("/")
        given = pickle.loads(body)  # noqa: S301 - both ends are the test's own
        await self._maybe_hold(method, "before", receive)
        try:
            found: Any = await self._do(method, given)
        except Exception as error:  # noqa: BLE001 - it is handed on as the answer
            found = error
        await self._maybe_hold(method, "after", receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": pickle.dumps(found)})

    async def _maybe_hold(self, method: str, place: Place, receive: Any) -> None:
        """Hold the request until whoever asked is dead."""
        if self.hold == (method, place):
            self.hold = None
            self.held.set()
            while (await receive())["type"] != "http.disconnect":
                pass
            if place == "before":
                raise ConnectionAbortedError("it never arrived")

    async def _do(self, method: str, given: tuple[Any, ...]) -> Any:
        if method == "frames":
            while not self._queue.empty():
                if (update := self._queue.get_nowait()) is not None:
                    self.frames.append(update)
            return self.frames[given[0] :] if given[0] is not None else self.frames
        found = await getattr(self._venue, method)(*given)
        if method == "submit" and (share := self._random.choice([0, 2])):
            await self.desk.fill(given[0].id, D(share), D(100))
        return found


@dataclass
class Killable:
    """The brokerage as a process, its database, and its venue."""

    process: Any
    admin: asyncpg.Connection
    venue: StandIn
    http: httpx.AsyncClient
    signer: Signer
    user: UUID = field(default_factory=uuid4)
    account: UUID = field(default_factory=uuid4)
    asked: list[UUID] = field(default_factory=list[UUID])

    async def open(self) -> None:
        await self.admin.execute(
            """insert into broker.accounts (id, user_id, venue, mode, name, created_at)
            values ($1, $2, 'memory', 'paper', 'mine', now())""",
            self.account,
            self.user,
        )
        for symbol, (bid, ask) in SHARES.items():
            quote = "insert into broker.quotes values ($1, $2, $3, now(), false)"
            await self.admin.execute(quote, symbol, D(bid), D(ask))

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        token = self.signer.sign(Identity(self.user, "user"), audience="broker", request_id="r1")
        answer = await self.http.request(method, path, json=body, headers={HEADER: token})
        assert answer.is_success, answer.text
        return answer.json() if answer.content else None

    async def place(self) -> UUID:
        order_id = uuid4()
        self.asked.append(order_id)
        legs = [{"symbol": "AAPL", "side": "buy" if len(self.asked) % 3 else "sell"}]
        terms = {"legs": legs, "type": "limit", "quantity": "5", "limit": "100"}
        body = {"account_id": str(self.account), "order_id": str(order_id), "terms": terms}
        await self.ask("POST", "/broker/orders", body)
        return order_id

    async def working(self) -> UUID | None:
        found = "select id from broker.orders where state in ('accepted', 'partially_filled') limit 1"
        row: UUID | None = await self.admin.fetchval(found)
        return row

    async def trigger(self, point: str) -> None:
        """Begin what leads to the point."""
        kind = AT_VENUE.get(point, ("submit", "before"))[0]
        if kind == "submit":
            await self.place()
            return
        while (order_id := await self.working()) is None:
            await self.place()
            await eventually(self.settled, 60)
        if kind == "cancel":
            await self.ask("DELETE", f"/broker/orders/{order_id}")
        else:
            told = await self.ask("PATCH", f"/broker/orders/{order_id}", {"limit": "99.50"})
            self.asked.append(UUID(told["order_id"]))

    async def close_gate(self, point: str) -> None:
        await self.admin.execute(f"select pg_advisory_lock({GATE})")
        await self.admin.execute(
            f"""
            create or replace function broker.hold() returns trigger language plpgsql security definer as $$
            begin perform pg_advisory_xact_lock_shared({GATE}); return new; end $$;
            """
        )
        when, _, rest = IN_DATABASE[point].partition(" when ")
        condition = f" when {rest}" if rest else ""
        await self.admin.execute(f"create trigger hold {when}{condition} execute function broker.hold()")

    async def open_gate(self, point: str) -> None:
        await self.admin.execute(f"select pg_advisory_unlock({GATE})")
        table = next(word for word in IN_DATABASE[point].split() if word.startswith("broker."))
        await self.admin.execute(f"drop trigger hold on {table}")

    async def stuck(self) -> bool:
        held = "select 1 from pg_locks where locktype = 'advisory' and objid = $1 and not granted"
        return bool(await self.admin.fetch(held, GATE))

    async def settled(self) -> bool:
        """Whether all that was asked is known, sent and told."""
        known = await self.admin.fetchval("select count(*) from broker.orders")
        left = "select 1 from broker.sendings where status in ('pending', 'claimed', 'started')"
        return (
            known == len(self.asked)
            and not await self.admin.fetch(left)
            and not await self.admin.fetch("select 1 from broker.outbox")
        )

    async def kill_at(self, point: str) -> None:
        """Kill the process at a point, and start another."""
        if point in AT_VENUE:
            while AT_VENUE[point][0] != "submit" and await self.working() is None:
                await self.place()
                await eventually(self.settled, 60)
            self.venue.held.clear()
            self.venue.hold = AT_VENUE[point]
            await self.trigger(point)
            await eventually(self.venue.held.is_set, 120)
            await self.process.kill()
        else:
            await self.close_gate(point)
            await self.trigger(point)
            await eventually(self.stuck, 120)
            await self.process.kill()
            await self.open_gate(point)
        late = "update broker.sendings set lease_until = now() - interval '1 second' where lease_until is not null"
        await self.admin.execute(late)
        await self.process.start()
        await self.process.ready()
        await eventually(self.settled, 120)


@pytest.fixture
async def killable(
    settings: SharedSettings, database_url: str, clean_kafka: RunningKafka, tmp_path: Path
) -> AsyncGenerator[Killable]:
    from tests.flows.stack import ServiceProcess  # noqa: PLC0415 - it brings in four services

    del clean_kafka
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    venue = StandIn()
    with serving(venue, "venue") as url:
        env = {
            **os.environ,
            "OPENBELL_DATABASE_URL": settings.database_url,
            "OPENBELL_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
            "OPENBELL_KAFKA_STATIC_MEMBERS": "true",  # each life takes the dead one's place at once
            "OPENBELL_KAFKA_SMALL_TOPICS": str(settings.kafka_small_topics),
            "OPENBELL_HTTP_PORT": str(port),
            "OPENBELL_TEST_VENUE": url,
            "OPENBELL_BROKER_QUOTE_AGE_S": "86400",
            "OPENBELL_BROKER_DUPLICATE_WINDOW_S": "0",
            "OPENBELL_BROKER_MAX_ORDERS_A_MINUTE": "100000",
        }
        process = ServiceProcess(env, tmp_path / "broker.log", "tests.broker.child")
        admin = await asyncpg.connect(database_url)
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        try:
            killable = Killable(process, admin, venue, http, Signer(identity_secret(settings), utc_now))
            await killable.open()
            await process.start()
            await process.ready()
            yield killable
        finally:
            await process.stop()
            await http.aclose()
            await admin.close()
            gc.collect()  # what the kills cut in two is found here, and in no later test


@pytest.mark.apache  # each life is a member that has to be noticed dead
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # requests that a kill cut in two
@pytest.mark.timeout(600 + 60 * KILLS)
async def test_a_kill_anywhere_between_a_command_and_its_record_doubles_no_order_and_leaves_none_in_doubt(
    killable: Killable,
) -> None:
    for number in range(KILLS):
        await killable.kill_at(POINTS[number % len(POINTS)])

    desk, venue_says = killable.venue.desk, dict[UUID, Any]()
    assert [order_id for order_id, times in Counter(desk.submits()).items() if times > 1] == []
    venue_says = {one.order.id: one for one in desk.placed}

    async def same() -> bool:
        rows = await killable.admin.fetch("select id, state, filled from broker.orders")
        held = await killable.admin.fetch("select symbol, quantity from broker.positions where quantity <> 0")
        theirs = {key: one.quantity for key, one in desk.held.items() if one.quantity}
        return {row["symbol"]: row["quantity"] for row in held} == theirs and all(
            row["state"] in (WORKING if row["id"] in venue_says and venue_says[row["id"]].works else OVER)
            and row["filled"] == (venue_says[row["id"]].filled(0) if row["id"] in venue_says else 0)
            for row in rows
        )

    await eventually(same, 120)
    assert set(desk.submits()) <= set(killable.asked)
    assert await killable.admin.fetch("select 1 from broker.flags") == []
