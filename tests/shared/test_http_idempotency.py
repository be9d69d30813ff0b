"""A POST sent again is answered again, not done again: under races, crashes, other payloads and other callers."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from litestar import Request, Response, post
from litestar.params import JSONBody
from sqlalchemy import text

from shared import idempotency
from shared.clock import new_id
from shared.contracts.api import ActionAudited
from shared.db import Database, Tx
from shared.errors import Conflict
from shared.http import Caller, build_app
from shared.idempotency import answer_once
from shared.identity import Identity, Signer
from shared.messaging.door import Done, Door
from shared.messaging.outbox import Outbox
from tests.conftest import ManualClock
from tests.shared.test_http import SECRET, FakeService

_EFFECT = text("insert into effects (name) values (:name)")


class Shop:
    """A service with one POST route whose effect is a row and an event."""

    def __init__(self, database: Database, clock: ManualClock) -> None:
        self.door = Door(database, Outbox("api", lambda: None))
        self.clock = clock
        self.gate = asyncio.Event()
        self.gate.set()
        self.inside = asyncio.Event()
        self.crash = False
        self.user = Identity(new_id(), "user")
        service = FakeService(self._route())
        service.door = self.door
        service.clock = clock
        transport = httpx.ASGITransport(build_app(service), raise_app_exceptions=False)  # pyright: ignore[reportArgumentType]
        self.client = httpx.AsyncClient(transport=transport, base_url="http://demo")

    def _route(self) -> Any:
        @post("/orders", caller=Caller.USER)
        async def order(request: Request[Any, Any, Any], data: JSONBody[dict[str, str]]) -> Response[bytes]:
            return await answer_once(request, self.door, lambda tx: self.buy(data["name"], tx))

        return order

    async def buy(self, name: str, tx: Tx) -> Done[dict[str, Any]]:
        if name == "sold out":
            raise Conflict("sold out")
        await tx.execute(_EFFECT, name=name)
        self.inside.set()
        await self.gate.wait()
        if self.crash:
            raise RuntimeError("killed between effect and answer")
        now = self.clock()
        told = ActionAudited(id=new_id(), time=now, service="api", actor="x", action="buy.thing", subject=name, at=now)
        return Done({"name": name, "receipt": new_id(), "at": now}, [told])

    async def order(self, key: str | None, name: str = "tea", user: Identity | None = None) -> httpx.Response:
        token = Signer(SECRET, self.clock).sign(user or self.user, audience="demo", request_id="r")
        headers = {"x-openbell-identity": token} | ({"idempotency-key": key} if key is not None else {})
        return await self.client.post("/orders", json={"name": name}, headers=headers)

    async def count(self, table: str = "effects") -> int:
        async with self.door.read() as tx:
            return await tx.fetchval(text(f"select count(*) from {table}"))


@pytest.fixture
async def shop(open_database):
    database = open_database("api")
    async with database.transaction() as tx:
        await tx.execute(text("create table effects (name text not null)"))
    shop = Shop(database, ManualClock(datetime(2026, 7, 1, tzinfo=UTC)))
    yield shop
    await shop.client.aclose()


async def test_a_repetition_is_answered_and_not_done(shop: Shop):
    first, again = await shop.order("k1"), await shop.order('"k1"')
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert (await shop.count(), await shop.count("outbox")) == (1, 1)


async def test_twenty_at_once_have_one_effect(shop: Shop):
    shop.gate.clear()
    orders = [asyncio.create_task(shop.order("k1")) for _ in range(20)]
    await shop.inside.wait()
    shop.gate.set()
    answers = await asyncio.gather(*orders)
    assert (await shop.count(), await shop.count("outbox"), await shop.count("idempotency_keys")) == (1, 1, 1)
    codes = [answer.status_code for answer in answers]
    assert set(codes) <= {201, 409}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert (await shop.order("k1")).headers["idempotent-replayed"] == "true"


async def test_while_one_is_in_flight_another_is_told_so(shop: Shop):
    shop.gate.clear()
    first = asyncio.create_task(shop.order("k1"))
    await shop.inside.wait()
    second = await shop.order("k1")
    other = asyncio.create_task(shop.order("k2"))
    shop.gate.set()
    assert second.status_code == 409
    assert second.json()["error"]["code"] == "IDEMPOTENCY_KEY_IN_FLIGHT"
    assert (await first).status_code == (await other).status_code == 201


async def test_a_crash_after_the_effect_leaves_neither_effect_nor_answer(shop: Shop):
    shop.crash = True
    assert (await shop.order("k1")).status_code == 500
    assert (await shop.count(), await shop.count("outbox"), await shop.count("idempotency_keys")) == (0, 0, 0)
    shop.crash = False
    again = await shop.order("k1")
    assert again.status_code == 201
    assert "idempotent-replayed" not in again.headers
    assert await shop.count() == 1


async def test_a_key_means_one_payload(shop: Shop):
    await shop.order("k1")
    answer = await shop.order("k1", name="coffee")
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "IDEMPOTENCY_KEY_REUSED"
    assert await shop.count() == 1


async def test_a_key_is_its_callers_own(shop: Shop):
    await shop.order("k1")
    answer = await shop.order("k1", user=Identity(new_id(), "user"))
    assert answer.status_code == 201
    assert "idempotent-replayed" not in answer.headers
    assert await shop.count() == 2


async def test_without_a_key_each_request_is_done(shop: Shop):
    await shop.order(None)
    await shop.order(None)
    assert (await shop.count(), await shop.count("idempotency_keys")) == (2, 0)


async def test_a_refusal_is_not_remembered(shop: Shop):
    for _ in range(2):
        answer = await shop.order("k1", name="sold out")
        assert answer.status_code == 409
        assert answer.json()["error"]["code"] == "CONFLICT"
    assert (await shop.order("k1")).status_code == 201


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "x" * 256, '"', '"a', 'a"b', "a\\b"])
async def test_a_malformed_key_is_refused(shop: Shop, key: str):
    answer = await shop.order(key.encode("latin-1"))  # pyright: ignore[reportArgumentType]
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "IDEMPOTENCY_KEY_MALFORMED"
    assert await shop.count() == 0


async def test_after_a_day_a_key_is_forgotten(shop: Shop):
    await shop.order("k1")
    shop.clock.advance(24 * 3600)
    assert "idempotent-replayed" not in (await shop.order("k1")).headers
    assert await shop.count() == 2
    assert await idempotency.forget(shop.door.transaction, shop.clock()) == 0
    shop.clock.advance(24 * 3600)
    assert await idempotency.forget(shop.door.transaction, shop.clock()) == 1
