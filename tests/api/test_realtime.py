"""The socket: who may open it, what it tells, how it ends."""

import asyncio
import socket as sockets
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey
from prometheus_client import REGISTRY
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from services.api.main import Gateway
from services.api.store import feed
from shared.process import HttpServer
from tests.api.conftest import Person, rows
from tests.api.sockets import end_of, following, notice, receive, serving, tell
from tests.conftest import ManualClock, eventually

Join = Callable[..., Awaitable[Person]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBELL_API_REALTIME_CHECK_S", "0.05")
    monkeypatch.setenv("OPENBELL_API_REALTIME_SOCKETS_PER_USER", "3")
    monkeypatch.setenv("OPENBELL_API_PRINCIPAL_TTL_S", "0")


@pytest.fixture
async def served(gateway: Gateway) -> AsyncGenerator[tuple[HttpServer, str]]:
    async with serving(gateway) as up:
        yield up


@pytest.fixture
def url(served: tuple[HttpServer, str]) -> str:
    return served[1]


async def refused(url: str, **options: Any) -> tuple[int, Any]:
    """The status and the error that opening a socket is answered with."""
    with pytest.raises(InvalidStatus) as caught:
        async with connect(url, proxy=None, **options):
            pass
    response = caught.value.response
    return response.status_code, httpx.Response(200, content=bytes(response.body or b"")).json()["error"]


def closed(reason: str) -> float:
    return REGISTRY.get_sample_value("openbell_realtime_closed_total", {"reason": reason}) or 0.0


async def test_a_user_is_told_what_is_theirs_as_it_happens(
    gateway: Gateway, url: str, ada: Person, bob: Person, clock: ManualClock
):
    async with following(url, ada) as (socket, hello), following(url, bob) as (bobs, _):
        assert hello == {"type": "hello", "cursor": "0", "gap": False}
        assert REGISTRY.get_sample_value("openbell_realtime_sockets") == 2
        event = notice(ada.id, at=clock())
        await tell(gateway, notice(bob.id, "for bob", at=clock()), event)
        told = await receive(socket)
        assert told == {
            "type": "alerts.notice.raised.v1",
            "id": str(event.id),
            "cursor": "1",
            "at": clock().isoformat(),
            "data": {
                "notice_id": str(event.notice_id),
                "kind": "order_filled",
                "title": "Bought 10 AAPL",
                "lines": [],
                "at": "2026-07-01T14:30:00Z",
            },
        }
        assert (await receive(bobs))["data"]["title"] == "for bob"
        await tell(gateway, notice(ada.id, "second", at=clock()))
        assert [(await receive(socket))["cursor"]] == ["2"]
    await eventually(lambda: REGISTRY.get_sample_value("openbell_realtime_sockets") == 0)


async def test_an_administrator_is_told_no_more_than_anybody(
    gateway: Gateway, url: str, admin: Person, ada: Person, clock: ManualClock
):
    async with following(url, admin) as (socket, _):
        await tell(gateway, notice(ada.id, at=clock()), notice(admin.id, "mine", at=clock()))
        assert (await receive(socket))["data"]["title"] == "mine"


async def test_whoever_is_not_let_in_is_told_why_over_http(url: str, gateway: Gateway, ada: Person):
    status, error = await refused(url + "/realtime")
    assert (status, error["code"]) == (401, "UNAUTHENTICATED")
    status, error = await refused(f"{url}/realtime?ticket={ada.key}")
    assert (status, error["code"]) == (401, "UNAUTHENTICATED")
    for since in ("-1", "x", "", "1.5", "٣", str(2**63), "1&since=2", "9" * 5000):
        status, error = await refused(f"{url}/realtime?since={since}", additional_headers=ada.headers)
        assert (status, error["code"]) == (422, "VALIDATION_ERROR"), since
    assert error.keys() == {"code", "message", "details", "timestamp", "request_id"}
    for _ in range(40):
        status, error = await refused(url + "/realtime?ticket=wrong")
        if status == 429:
            break
    assert (status, error["code"]) == (429, "RATE_LIMITED")


async def test_a_ticket_opens_one_socket_for_who_asked_and_only_in_time(
    gateway: Gateway, url: str, ada: Person, clock: ManualClock
):
    async with httpx.AsyncClient(base_url=url.replace("ws:", "http:"), trust_env=False) as http:

        async def ticket() -> str:
            answer = await http.post("/realtime/tickets", headers=ada.headers)
            assert answer.status_code == 201, answer.text
            return answer.json()["ticket"]

        assert (await http.post("/realtime/tickets")).status_code == 401
        first, late = await ticket(), await ticket()
    async with connect(f"{url}/realtime?ticket={first}", proxy=None) as socket:
        assert (await receive(socket))["type"] == "hello"
        await tell(gateway, notice(ada.id, at=clock()))
        assert (await receive(socket))["cursor"] == "1"
        assert (await refused(f"{url}/realtime?ticket={first}"))[0] == 401
    both = f"{url}/realtime?ticket={late}"
    assert (await refused(both, additional_headers=ada.headers))[0] == 401
    clock.advance(31)
    assert (await refused(both))[0] == 401
    assert len(await rows(gateway, "select 1 from realtime_tickets")) == 1
    await feed.forget(gateway.door.transaction, clock(), clock())
    assert await rows(gateway, "select 1 from realtime_tickets") == []


async def test_a_user_has_so_many_sockets_and_no_more(url: str, ada: Person, bob: Person):
    async with following(url, ada), following(url, ada):
        async with following(url, ada):
            status, error = await refused(url + "/realtime", additional_headers=ada.headers)
            assert (status, error["code"]) == (429, "TOO_MANY_SOCKETS")
            async with following(url, bob):
                pass
        async with asyncio.timeout(30):
            while True:
                try:
                    async with following(url, ada) as (_, hello):
                        assert hello["type"] == "hello"
                        break
                except InvalidStatus:
                    await asyncio.sleep(0.02)  # the server hears in a moment that one has left


async def test_a_key_that_is_ended_ends_its_sockets_and_no_others(
    gateway: Gateway, make_gateway: Callable[..., Gateway], url: str, ada: Person, clock: ManualClock
):
    async with httpx.AsyncClient(base_url=url.replace("ws:", "http:"), headers=ada.headers, trust_env=False) as http:
        added = (await http.post(f"/api/user/{ada.id}/keys", json={"name": "phone"})).json()
        second = Person(ada.id, ada.email, added["api_key"])
        issued = await http.post("/realtime/tickets", headers=second.headers)
        by_ticket = f"{url}/realtime?ticket={issued.json()['ticket']}"
        async with (
            serving(make_gateway()) as (_, other),
            following(url, ada) as (kept, _),
            following(url, second) as (here, _),
            following(other, second) as (there, _),
            connect(by_ticket, proxy=None) as ticketed,
        ):
            assert (await http.delete(f"/api/user/{ada.id}/keys/{added['id']}")).status_code == 204
            async with asyncio.timeout(10):
                assert [await end_of(one) for one in (here, there, ticketed)] == [4401] * 3
            await tell(gateway, notice(ada.id, at=clock()))
            assert (await receive(kept))["cursor"] == "1"
    assert (await refused(url + "/realtime", additional_headers=second.headers))[0] == 401


async def test_a_client_that_speaks_is_shown_out(url: str, ada: Person):
    async with following(url, ada) as (socket, _):
        await socket.send("hello?")
        assert await end_of(socket) == 1008
    async with following(url, ada) as (socket, _):
        await socket.send("x" * 20_000)
        assert await end_of(socket) == 1009


async def test_a_client_that_takes_nothing_is_dropped_with_a_reason_and_keeps_nobody_waiting(
    make_gateway: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch, ada: Person, clock: ManualClock
):
    monkeypatch.setenv("OPENBELL_API_REALTIME_SEND_S", "0.5")
    gateway, before = make_gateway(), closed("slow")
    async with serving(gateway) as (_, url):
        plug = sockets.socket()
        plug.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        plug.connect(("127.0.0.1", int(url.rpartition(":")[2])))
        options: dict[str, Any] = {"max_queue": 1, "compression": None, "max_size": None}
        async with following(url, ada, sock=plug, **options) as (slow, _), following(url, ada, **options) as (quick, _):
            for number in range(6):
                await tell(gateway, *(notice(ada.id, f"{number}" + "x" * 400_000, at=clock()) for _ in range(10)))
            for cursor in range(1, 61):
                assert (await receive(quick))["cursor"] == str(cursor)
            await eventually(lambda: closed("slow") == before + 1)
            last = "0"
            while slow.close_code is None:
                try:
                    last = (await receive(slow))["cursor"]
                except Exception:  # noqa: BLE001 - it ends as its code says
                    break
            assert slow.close_code == 4408
            assert 0 < int(last) < 60
        async with following(url, ada, since=last, **options) as (again, _):
            assert [int((await receive(again))["cursor"]) for _ in range(int(last), 60)] == [*range(int(last) + 1, 61)]


async def test_a_gateway_that_stops_says_so_to_every_socket_in_time(
    served: tuple[HttpServer, str], ada: Person, bob: Person
):
    server, url = served
    async with following(url, ada) as (one, _), following(url, bob) as (other, _):
        server.should_exit = True
        async with asyncio.timeout(5):
            assert [await end_of(one), await end_of(other)] == [1012, 1012]
    await eventually(lambda: REGISTRY.get_sample_value("openbell_realtime_sockets") == 0)


async def test_a_token_that_is_over_ends_its_socket(
    make_gateway: Callable[..., Gateway], monkeypatch: pytest.MonkeyPatch, join: Join, clock: ManualClock
):
    secret = "s" * 40
    monkeypatch.setenv("OPENBELL_API_JWT_SECRET", secret)
    monkeypatch.setenv("OPENBELL_API_JWT_ISSUER", "https://issuer.example")
    monkeypatch.setenv("OPENBELL_API_JWT_AUDIENCE", "openbell")
    eve = await join("eve@example.com", external_id="eve")
    expires = int(clock().timestamp()) + 60
    claims = {"iss": "https://issuer.example", "aud": "openbell", "sub": "eve", "exp": expires}
    token = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(secret))
    async with (
        serving(make_gateway()) as (_, url),
        following(url, Person(eve.id, eve.email, token)) as (socket, _),
    ):
        clock.advance(30)
        assert socket.close_code is None
        clock.advance(31)
        assert await end_of(socket) == 4401
