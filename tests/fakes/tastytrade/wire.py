"""The stand-in's server: OAuth, the User-Agent, routes, pages, the streamer, and faults when a test asks for them."""

import asyncio
import itertools
import json
import math
import re
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from aiohttp import WSMsgType, web
from aiohttp.test_utils import TestServer

from services.broker.adapters.tastytrade import Hosts
from tests.fakes.tastytrade.desk import EQUITIES, Desk, Json, Placed, Refused

ACCOUNT = "5WX06827"
CLIENT_SECRET = "client-secret-of-the-stand-in"
REFRESH_TOKEN = "refresh-token-of-the-stand-in"
LIFE_S = 900
HANGS = 0

_AGENT = re.compile(r"\S+/\S+")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request: a status (0: the connection is cut), before or after it took effect."""

    status: int = 503
    effect: bool = False
    body: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Asked:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


class FakeTastytrade:
    """One account over HTTP and WebSocket on 127.0.0.1, between `async with` and its end."""

    def __init__(self, account: str = ACCOUNT) -> None:
        self.desk = Desk(account, self._tell)
        self.requests: list[Asked] = []
        self.tokens: dict[str, datetime] = {}
        """When each token ends, by the venue's clock."""
        self.lose = 0
        """So many of the next frames are lost."""
        self.deaf = False
        """Nothing at all is sent by the streamer, as when a middlebox has forgotten the line."""
        self.last_fill: Json | None = None
        self.heartbeats = 0
        self._faults: list[tuple[str, str, deque[Fault]]] = []
        self._numbers = itertools.count(1)
        self._lines: list[asyncio.Queue[Json | None]] = []
        app = web.Application()
        app.router.add_post("/oauth/token", self._oauth)
        app.router.add_get("/streamer", self._stream)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._server = TestServer(app)

    @property
    def hosts(self) -> Hosts:
        """Where it answers."""
        api = str(self._server.make_url("")).rstrip("/")
        return Hosts(api, f"ws{api.removeprefix('http')}/streamer")

    @property
    def listeners(self) -> int:
        return len(self._lines)

    def fail(self, method: str, path: str, *faults: Fault) -> None:
        """Let the next requests go wrong: of this method (an expression), whose path the expression is found in."""
        self._faults.append((method, path, deque(faults)))

    def expire_tokens(self) -> None:
        """Let no token count any more, before its time."""
        self.tokens = dict.fromkeys(self.tokens, datetime.min.replace(tzinfo=UTC))

    def drop_stream(self) -> None:
        """Cut all lines; what happens until somebody listens again is lost."""
        for line in self._lines:
            line.put_nowait(None)
        self._lines.clear()

    def repeat_fill(self) -> None:
        """Send the last fill's frame again."""
        assert self.last_fill is not None
        self.send(self.last_fill)

    def send(self, frame: Json) -> None:
        """Send a frame to all that listen."""
        if self.lose > 0:
            self.lose -= 1
            return
        for line in self._lines:
            line.put_nowait(frame)

    def asked(self, method: str, path: str) -> list[Asked]:
        """Return the requests of a method whose path the expression is found in."""
        return [one for one in self.requests if one.method == method and re.search(path, one.path)]

    async def __aenter__(self) -> Self:
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.drop_stream()
        await self._server.close()

    def _tell(self, order: Placed) -> None:
        told = self.desk.json(order)
        frame = {"type": "Order", "data": told, "timestamp": told["updated-at"]}
        if any(leg["fills"] for leg in told["legs"]):
            self.last_fill = frame
        self.send(frame)

    # HTTP

    async def _oauth(self, request: web.Request) -> web.Response:
        if (fault := await self._fault(request)) is not None:
            return fault
        asked = await request.json()
        self.requests.append(Asked("POST", request.path, {}, asked))
        known = {"grant_type": "refresh_token", "refresh_token": REFRESH_TOKEN, "client_secret": CLIENT_SECRET}
        if {name: asked.get(name) for name in known} != known:
            message = "Invalid login, please check your username and password."
            return web.json_response({"error": {"code": "invalid_credentials", "message": message}}, status=401)
        token = f"access-token-{next(self._numbers)}"
        self.tokens[token] = self.desk.now() + timedelta(seconds=LIFE_S)
        return web.json_response({"access_token": token, "token_type": "Bearer", "expires_in": LIFE_S})

    def _knows(self, header: str) -> bool:
        ends = self.tokens.get(header.removeprefix("Bearer "))
        return header.startswith("Bearer ") and ends is not None and self.desk.now() < ends

    async def _fault(self, request: web.Request) -> web.Response | None:
        for method, path, faults in self._faults:
            if faults and re.fullmatch(method, request.method) and re.search(path, request.path):
                fault = faults.popleft()
                if fault.effect:
                    await self._effect(request)
                if fault.status == HANGS:
                    assert request.transport is not None
                    request.transport.close()
                return web.Response(status=fault.status or 500, text=fault.body, headers=dict(fault.headers))
        return None

    async def _answer(self, request: web.Request) -> web.Response:
        unknown = not _AGENT.match(request.headers.get("user-agent", ""))
        if unknown or not self._knows(request.headers.get("authorization", "")):
            body = {"error": {"code": "token_invalid", "message": "This token is invalid or has expired"}}
            return web.json_response(body, status=401)
        if (fault := await self._fault(request)) is not None:
            return fault
        return await self._effect(request)

    async def _effect(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        query = dict(request.query)
        if "symbol[]" in query:
            query["symbol[]"] = ",".join(request.query.getall("symbol[]"))
        self.requests.append(Asked(request.method, request.path, query, body))
        try:
            status, told = self._route(request.method, request.path.strip("/").split("/"), query, body)
        except Refused as refusal:
            return web.json_response(refusal.body, status=refusal.status)
        return web.json_response({**told, "context": request.path}, status=status)

    def _route(self, method: str, path: list[str], query: dict[str, str], body: Any) -> tuple[int, Json]:
        if path[0] == "instruments":
            return 200, _page(_instruments(path[1], query["symbol[]"].split(",")), query)
        if path[:2] != ["accounts", self.desk.account]:
            raise Refused(403, "not_permitted", "User not permitted access")
        if method == "GET":
            return 200, self._shown(path[2:], query)
        return self._done(method, path[2:], body)

    def _done(self, method: str, path: list[str], body: Any) -> tuple[int, Json]:
        desk = self.desk
        match method, path:
            case "POST", ["orders"]:
                return 201, {"data": {"order": desk.json(desk.place(body)), "warnings": []}}
            case "DELETE", ["orders", number]:
                told = desk.json(desk.cancel(int(number)))  # the answer is from before the exchange's
                told.pop("terminal-at", None)
                return 200, {"data": {**told, "status": "Cancel Requested"}}
            case "PUT", ["orders", number]:
                return 200, {"data": desk.json(desk.replace(int(number), body))}
            case _:
                raise Refused(404, "not_found", "There is no such path")

    def _shown(self, path: list[str], query: dict[str, str]) -> Json:
        desk = self.desk
        match path:
            case ["orders"]:
                found = [one for one in desk.orders.values() if _since(one.received, query)]
                told = _page([desk.json(one) for one in reversed(found)], query)
            case ["orders", "live"]:
                today = desk.now().date()
                found = [one for one in desk.orders.values() if not one.over or one.updated.date() == today]
                told = _page([desk.json(one) for one in found], {"per-page": "100"} | query)
            case ["orders", number] if int(number) in desk.orders:
                told = {"data": desk.json(desk.orders[int(number)])}
            case ["transactions"]:
                rows = [one for one in desk.transactions if one["transaction-date"] >= query.get("start-date", "")]
                told = _page(list(reversed(rows)), query)
            case ["positions"]:
                told = {"data": {"items": desk.positions()}}
            case ["balances"]:
                told = {"data": desk.balances()}
            case _:
                raise Refused(404, "record_not_found", "Couldn't find it")
        return told

    # The streamer

    async def _stream(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        line: asyncio.Queue[Json | None] = asyncio.Queue()
        sender = asyncio.create_task(self._send_all(socket, line))
        try:
            async for message in socket:
                if message.type == WSMsgType.TEXT:
                    self._heard(json.loads(message.data), line)
        finally:
            if line in self._lines:
                self._lines.remove(line)
            line.put_nowait(None)
            await sender
        return socket

    def _heard(self, asked: Json, line: asyncio.Queue[Json | None]) -> None:
        answer = {"action": asked["action"], "web-socket-session-id": "c8531fa0", "request-id": asked["request-id"]}
        if not self._knows(asked.get("auth-token", "")):
            line.put_nowait({**answer, "status": "error", "message": "failed"})
            return
        if asked["action"] == "connect":
            line.put_nowait({**answer, "status": "ok", "value": asked["value"]})
            self._lines.append(line)
        else:
            self.heartbeats += 1
            line.put_nowait({**answer, "status": "ok"})

    async def _send_all(self, socket: web.WebSocketResponse, line: asyncio.Queue[Json | None]) -> None:
        while (frame := await line.get()) is not None:
            if not self.deaf and not socket.closed:
                await socket.send_json(frame)
        await socket.close()


def _page(items: list[Json], query: dict[str, str]) -> Json:
    per, offset = int(query.get("per-page", 10)), int(query.get("page-offset", 0))
    shown = items[offset * per : (offset + 1) * per]
    return {
        "data": {"items": shown},
        "pagination": {
            "per-page": per,
            "page-offset": offset,
            "item-offset": offset * per,
            "total-items": len(items),
            "total-pages": math.ceil(len(items) / per),
            "current-item-count": len(shown),
            "previous-link": None,
            "next-link": None,
            "paging-link-template": None,
        },
    }


def _since(at: datetime, query: dict[str, str]) -> bool:
    return at.date().isoformat() >= query.get("start-date", "")


def _instruments(kind: str, symbols: list[str]) -> list[Json]:
    if kind == "equities":
        ticks = {
            "tick-sizes": [{"value": "0.0001", "threshold": "1.0"}, {"value": "0.01"}],
            "option-tick-sizes": [{"value": "0.01", "threshold": "3.0"}, {"value": "0.05"}],
        }
        known = [one for one in symbols if one in EQUITIES]
        return [{"symbol": one, "instrument-type": "Equity", "active": True, **ticks} for one in known]
    known = [one for one in symbols if len(one) == 21 and one[:6].strip() in EQUITIES]
    return [{"symbol": one, "instrument-type": "Equity Option", "active": True} for one in known]
