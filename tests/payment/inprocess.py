"""The payment service in this process, without Kafka: a test carries its events by hand, and settles what they ask for.

    service = await started(fake, database_url, monkeypatch)
    await service.post(*fake.signed(event))   # the webhook route itself
    await service.settle()                    # its consumers and its workers, until nothing is due

`at_hand` asks Stripe through the port, straight from the account: thousands of lives in a minute. Without it, the real
client asks over HTTP.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from services.payment.domain.stripe import KINDS
from services.payment.main import build
from shared.contracts.api import UserSignedUp
from shared.contracts.base import Event
from shared.identity import HEADER, Identity, Role, Signer
from shared.messaging.record import unpack_headers
from shared.service import Environment, Service
from shared.settings import SharedSettings
from shared.work import Worker
from tests.fakes.stripe import FakeStripe
from tests.fakes.stripe.books import Refused

PRICE = "price_pro"
PLAN = {"name": "pro", "title": "Pro", "price_usd": "29", "entitlements": ["pro"], "stripe_price": PRICE}
PLANS = [
    PLAN,
    {"name": "max", "title": "Max", "price_usd": "59", "entitlements": ["max", "pro"], "stripe_price": "price_max"},
]


_LEFT = """
    select min(due_at) filter (where status = 'pending') as due_at, sum(attempts) as attempts, sum(wanted) as wanted,
        count(*) filter (where status = 'done') as done from refreshes"""


class AtHand:
    """Stripe's port, answered by the account itself."""

    def __init__(self, fake: FakeStripe) -> None:
        self.fake = fake
        self.fetched = 0

    async def fetch(self, kind: str, object_id: str) -> Mapping[str, Any] | None:
        self.fetched += 1
        about = KINDS[kind]
        path = "/v1/" + about.path.format(id=object_id)
        if about.query is not None:
            found = self.fake.api.call("GET", path, {about.query: object_id})["data"]
            return {"object": kind, "id": object_id, about.query: object_id, "data": found}
        try:
            told = self.fake.api.call("GET", path, {"expand": list(about.expand)})
        except Refused as error:
            if error.status == 404:
                return None
            raise
        if kind == "subscription" and told["status"] == "past_due":
            about = {"subscription": object_id, "status": "open", "limit": "100"}
            waiting = self.fake.api.call("GET", "/v1/invoices", about)["data"]
            told = {**told, "unpaid_since": min((one["created"] for one in waiting), default=None)}
        return None if told.get("deleted") else told

    async def list(self, kind: str, since: datetime | None = None) -> AsyncIterator[Mapping[str, Any]]:
        about = KINDS[kind]
        params: dict[str, Any] = {**(about.listed or {}), "limit": "100"}
        if since is not None:
            params["created"] = {"gte": int(since.timestamp())}
        async for one in self._pages("/v1/" + about.path.partition("/{id}")[0], params):
            yield one

    async def undelivered(self, since: datetime) -> AsyncIterator[Mapping[str, Any]]:
        params = {"delivery_success": "false", "created": {"gte": int(since.timestamp())}, "limit": "100"}
        async for one in self._pages("/v1/events", params):
            yield one

    async def close(self) -> None:
        """Nothing is open."""

    async def _pages(self, path: str, params: dict[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        after: dict[str, Any] = {}
        while True:
            page = self.fake.api.call("GET", path, {**params, **after})
            for one in page["data"]:
                yield one
            if not page["has_more"]:
                return
            after = {"starting_after": page["data"][-1]["id"]}


@dataclass
class InProcess:
    """A built service whose outside is the test."""

    fake: FakeStripe
    service: Service = field(init=False)
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    """(type, body) of what it told, but for its own webhooks."""
    asked: list[Any] = field(default_factory=list[Any])
    """The real adapters."""
    ahead_s: float = 0
    """How far its clock is ahead of the account's."""

    def clock(self) -> datetime:
        """Return the service's time."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.fake.now + self.ahead_s)

    async def close(self) -> None:
        """Close what is open."""
        for adapter in self.asked:
            await adapter.close()
        await self.service.close()

    async def post(self, body: bytes, headers: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        """Call the webhook route."""
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/pay/webhooks/stripe",
            "raw_path": b"/pay/webhooks/stripe",
            "query_string": b"",
            "headers": [*raw, (b"host", b"payment"), (b"content-length", str(len(body)).encode())],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        sent = [{"type": "http.request", "body": body, "more_body": False}]
        answer: dict[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            if not sent:
                await asyncio.Event().wait()
            return sent.pop()

        async def send(message: Any) -> None:
            answer["status"] = message.get("status", answer.get("status"))
            answer["body"] += message.get("body", b"")

        app: Any = self.service.app
        await app(scope, receive, send)
        return answer["status"], json.loads(answer["body"])

    async def deliver(self, events: list[dict[str, Any]]) -> None:
        """Post webhooks in this order, many at a time; each must be taken."""
        for start in range(0, len(events), 100):
            batch = [self.post(*self.fake.signed(event, at=self.fake.now)) for event in events[start : start + 100]]
            for status, body in await asyncio.gather(*batch):
                assert status == 200, body

    async def settle(self, *, wholly: bool = False) -> None:
        """Carry events and let workers work, until nothing is left to do now; `wholly`: nor later."""
        before: dict[str, Any] = {}
        while True:
            carried = await self.carry()
            for worker in self.workers:
                await worker.turn()
                await worker.idle()
            (state,) = await self.rows(_LEFT)
            idle, before = not carried and state == before, state
            if not idle:
                continue
            if not wholly or state["due_at"] is None:
                return
            self.ahead_s += max(1.0, (state["due_at"] - self.clock()).total_seconds() + 1)

    async def carry(self) -> int:
        """Hand what lies in the outbox to whom it is for; return how many there were."""
        async with self.service.db.transaction() as tx:
            rows = await tx.fetch(text("delete from outbox returning id, value, headers"))
        for row in sorted(rows, key=lambda row: row["id"]):
            headers = dict(unpack_headers(row["headers"]))
            kind = (headers[b"ce_type"] or b"").decode()
            await self._hand(kind, row["value"], headers)
        return len(rows)

    async def tell(self, event: Event) -> None:
        """Let the service hear an event of another service."""
        await self._hear(event)

    async def rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        """Look into the service's schema."""
        async with self.service.db.read() as tx:
            return [dict(row) for row in await tx.fetch(text(statement), **values)]

    async def execute(self, statement: str, **values: Any) -> None:
        """Write into the service's schema."""
        async with self.service.db.transaction() as tx:
            await tx.execute(text(statement), **values)

    async def users(self, count: int, seed: int = 0) -> list[UUID]:
        """Make users that the service knows."""
        found = [UUID(int=Random(f"{seed}/{number}").getrandbits(128), version=4) for number in range(count)]
        await self.execute(
            """insert into customers (user_id, email, created_at)
               select one, one || '@example.com', now() from unnest(cast(:ids as uuid[])) one""",
            ids=found,
        )
        return found

    @property
    def workers(self) -> list[Worker]:
        """What works on claimed rows."""
        return [one for one in self.service._runners if isinstance(one, Worker)]

    @property
    def askers(self) -> list[Any]:
        """What asks Stripe: owners of workers' effects and of jobs."""
        effects = [worker._work.perform for worker in self.workers] + [job.run for job in self.service._jobs]
        owners = [getattr(effect, "__self__", None) for effect in effects]
        return [owner for owner in owners if hasattr(owner, "_stripe")]

    def job(self, name: str) -> Any:
        """Return what a job of the clock runs."""
        (found,) = (job for job in self.service._jobs if job.name == name)
        return found.run

    async def _hand(self, kind: str, value: bytes, headers: Mapping[bytes, bytes | None]) -> None:
        for consumer in self.service.consumers:
            if (route := consumer.routes.get(kind)) is not None:
                at = datetime.fromisoformat((headers[b"ce_time"] or b"").decode())
                await self._hear(route.event.from_bytes(value, id=UUID((headers[b"ce_id"] or b"").decode()), time=at))
        if kind != "payment.webhook.received.v1":
            self.told.append((kind, json.loads(value)))

    async def _hear(self, event: Event) -> None:
        routes = [consumer.routes.get(event.type) for consumer in self.service.consumers]
        for route in filter(None, routes):
            given = [event] if route.batch else event
            await self.service.door.publish(lambda tx, route=route, given=given: route.handler(given, tx))


def started(
    fake: FakeStripe, database_url: str, monkeypatch: pytest.MonkeyPatch, *, at_hand: bool = False, **settings: str
) -> InProcess:
    """Build the service in front of an account; its clock is the account's. Whoever asks calls `close`."""
    wanted = {
        "STRIPE_KEY": fake.key,
        "STRIPE_WEBHOOK_SECRETS": fake.webhook_secret,
        "STRIPE_BASE": fake.url or "http://127.0.0.1:9",
        "STRIPE_CONCURRENCY": "64",
        "PLANS": json.dumps(PLANS),
    }
    for name, value in (wanted | settings).items():
        monkeypatch.setenv(f"OPENBELL_PAYMENT_{name}", value)
    shared = SharedSettings(database_url=database_url, kafka_bootstrap="127.0.0.1:9", database_pool_size=8)
    running = InProcess(fake)
    running.service = build(Environment(shared, running.clock, Random(1), "test"))
    for owner in running.askers:
        running.asked.append(owner._stripe)
        if at_hand:
            owner._stripe = AtHand(fake)
    return running


async def follow(running: InProcess) -> None:
    """Let webhooks arrive and workers work until nothing moves any more."""
    while True:
        await running.settle()
        waiting = [event for event in running.fake.events if event["id"] in running.fake.api.books.undelivered]
        if not waiting:
            return
        await running.deliver(waiting)
        running.fake.delivered(*(event["id"] for event in waiting))


async def asked(running: InProcess, user_id: UUID, path: str, body: Any, status: int) -> dict[str, Any]:
    """Ask by a request, while the workers work."""
    asking = asyncio.create_task(request(running, "POST", f"/pay/{path}", user_id, body))
    while not asking.done():
        await running.settle()
        await asyncio.sleep(0)
    answer = await asking
    assert answer.status_code == status, answer.text
    return answer.json()


async def have(running: InProcess, user_id: UUID) -> dict[str, Any]:
    """Return what a user is told to have."""
    return (await request(running, "GET", "/pay/subscription", user_id, None)).json()


async def request(
    running: InProcess, method: str, path: str, user_id: UUID, body: Any, role: Role = "user"
) -> httpx.Response:
    """Ask as the gateway does."""
    service = running.service
    signer = Signer(service.settings.identity_secret.get_secret_value(), service.clock)
    headers = {HEADER: signer.sign(Identity(user_id, role), audience="payment", request_id="r1")}
    transport = httpx.ASGITransport(app=cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://payment") as http:
        return await http.request(method, path, headers=headers, **({} if body is None else {"json": body}))


async def signed_up(running: InProcess) -> UUID:
    """Let somebody sign up."""
    user_id = uuid4()
    at, email = running.service.clock(), f"{user_id.hex[:8]}@example.org"
    await running.tell(UserSignedUp(id=uuid4(), time=at, user_id=user_id, email=email, role="user"))
    await follow(running)
    return user_id


async def subscriber(running: InProcess) -> UUID:
    """Let somebody sign up and buy the plan."""
    user_id = await signed_up(running)
    session = await asked(running, user_id, "checkout", {"plan": "pro"}, 201)
    assert running.fake.complete(session["id"])
    await follow(running)
    return user_id


async def books(running: InProcess) -> dict[str, int]:
    """Return the ledger's balances in US cents."""
    rows = await running.rows("select account, sum(amount) as held from ledger_postings group by account")
    return {row["account"]: int(row["held"]) for row in rows}
