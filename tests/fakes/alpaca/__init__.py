"""A stand-in for Alpaca: its Trading API and its stream of trade updates, over HTTP and WebSocket on 127.0.0.1.

It speaks the recorded shapes and keeps orders, executions, positions and money. Its faults are those that are known of
the real one: a frame told again under the same execution id, frames that never come, a line that another one ends,
rate limits with their headers, an answer that is lost after the order was taken, ids that must be unique.
"""

import asyncio
import json
import threading
from collections import deque
from contextlib import ExitStack
from typing import Any, Final, Self
from urllib.parse import parse_qsl, unquote

from tests.fakes.alpaca.books import Books, Refused
from tests.fakes.alpaca.shapes import Obj, moment
from tests.fakes.serving import serving

KEY_ID: Final = "PKTESTKEYID0000000000"
SECRET_KEY: Final = "made-up-secret-key-of-the-stand-in"
LOST: Final = -1
"""The status of an answer that is cut off."""
Answer = tuple[int, Any, dict[str, str]]


class Alpaca:
    """One account, its server, and a hand on both. Everything may be called from any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.books = Books(self._tell)
        self.requests: list[tuple[str, str, int]] = []
        self.submits: list[str] = []
        self.url = ""
        self.binary = True
        self.last_fill: Obj | None = None
        self.answers: deque[Answer] = deque()  # what the next requests are answered with, whatever they ask
        self.held_cancel = False
        self.refusal: str | None = None
        self.lost: str | None = None
        self.limits = 0
        self.frames_to_lose = 0
        self._lines: list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[Any]]] = []
        self._served = ExitStack()

    def __enter__(self) -> Self:
        self.url = self._served.enter_context(serving(self.app, "alpaca", "websockets-sansio"))
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._served.close()

    def cut(self) -> None:
        """End every line."""
        with self.lock:
            lines, self._lines = self._lines, []
        for loop, queue in lines:
            loop.call_soon_threadsafe(queue.put_nowait, None)

    def repeat_fill(self) -> None:
        """Tell the last fill once more."""
        assert self.last_fill is not None
        self.send(self.last_fill)

    @property
    def listeners(self) -> int:
        return len(self._lines)

    def _tell(self, data: Obj) -> None:
        frame = {"stream": "trade_updates", "data": data}
        if data["event"] in {"fill", "partial_fill"}:
            self.last_fill = frame
        if self.frames_to_lose:
            self.frames_to_lose -= 1
            return
        self.send(frame)

    def send(self, frame: Any) -> None:
        """Send a frame to whoever listens; text goes out as it is."""
        copied = json.loads(json.dumps(frame))  # as it is now
        with self.lock:
            for loop, queue in self._lines:
                loop.call_soon_threadsafe(queue.put_nowait, copied)

    # The server

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, or serve a line."""
        if scope["type"] == "websocket":
            await self._line(receive, send)
            return
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        params = dict(parse_qsl(scope["query_string"].decode()))
        path = unquote(scope["raw_path"].decode())
        with self.lock:
            status, told, more = self._answer(scope["method"], path, params, json.loads(body or b"{}"), headers)
            self.requests.append((scope["method"], path, status))
        content = told if isinstance(told, bytes) else b"" if told is None else json.dumps(told).encode()
        raw = [(name.encode(), value.encode()) for name, value in more.items()]
        raw += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        if status == LOST:
            raise ConnectionAbortedError
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, method: str, path: str, params: Obj, body: Obj, headers: dict[str, str]) -> Answer:
        if (headers.get("apca-api-key-id"), headers.get("apca-api-secret-key")) != (KEY_ID, SECRET_KEY):
            return 403, {"message": "forbidden."}, {}
        if self.answers:
            return self.answers.popleft()
        if self.limits:
            self.limits -= 1
            reset = str(int(self.books.now.timestamp()) + 1)
            words = {"x-ratelimit-limit": "200", "x-ratelimit-remaining": "0", "x-ratelimit-reset": reset}
            return 429, {"code": 42910000, "message": "rate limit exceeded"}, words
        try:
            return self._write(method, path, body) if method != "GET" else (200, self._read(path, params), {})
        except Refused as error:
            return error.status, error.body, {}

    def _write(self, method: str, path: str, body: Obj) -> Answer:
        lost, self.lost = self.lost, None
        if lost == "request":
            return 504, {"message": "gateway timeout"}, {}
        told, status = None, 200
        if (method, path) == ("POST", "/v2/orders"):
            if self.refusal is not None:
                reason, self.refusal = self.refusal, None
                raise Refused(403, 40310000, reason)
            told = dict(self.books.place(body))
            self.submits.append(told["client_order_id"])
        else:
            hold, self.held_cancel = self.held_cancel, False
            order_id = path.removeprefix("/v2/orders/")
            if method == "DELETE":
                self.books.cancel(order_id, hold=hold)
                status = 204
            elif method == "PATCH":
                told = dict(self.books.replace(order_id, body, hold=hold))
            else:
                raise Refused(405, 40510000, "method not allowed")
        return (LOST if lost == "answer" else status), told, {}

    def _read(self, path: str, params: Obj) -> Any:
        found: Any = None
        if path == "/v2/orders":
            after, limit = moment(params["after"]), int(params["limit"])
            assert params["nested"] == "true"
            assert params["direction"] == "asc"
            assert limit <= 500
            found = self.books.listed(after, limit)
        elif path == "/v2/account/activities":
            size = int(params["page_size"])
            assert size <= 100
            assert params["direction"] == "asc"
            kinds, after = set(params["activity_types"].split(",")), moment(params["after"])
            found = self.books.activity_page(kinds, after, params.get("page_token"), size)
        elif path == "/v2/account":
            found = self.books.account()
        elif path == "/v2/positions":
            found = list(self.books.positions())
        elif path == "/v2/orders:by_client_order_id":
            found = self.books.by_client_id(params["client_order_id"])
        elif path.startswith("/v2/orders/"):
            found = self.books.orders.get(path.removeprefix("/v2/orders/"))
        elif path.startswith("/v2/assets/"):
            found = self.books.asset(path.removeprefix("/v2/assets/"))
        elif path.startswith("/v2/options/contracts/"):
            found = self.books.contract(path.removeprefix("/v2/options/contracts/"))
        if found is None:
            raise Refused(404, 40410000, f"not found: {path}")
        return found

    # The line

    async def _line(self, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "websocket.connect"
        await send({"type": "websocket.accept"})
        queue: asyncio.Queue[Any] = asyncio.Queue()
        mine = (asyncio.get_running_loop(), queue)
        sending = asyncio.create_task(self._sends(queue, send))
        authorized = False
        try:
            while (message := await receive())["type"] == "websocket.receive":
                asked = json.loads(message.get("text") or message["bytes"])
                if asked["action"] in {"auth", "authenticate"}:
                    authorized = (asked["key"], asked["secret"]) == (KEY_ID, SECRET_KEY)
                    status = "authorized" if authorized else "unauthorized"
                    data = {"action": "authenticate", "status": status}
                    queue.put_nowait({"stream": "authorization", "data": data})
                elif asked["action"] == "listen" and authorized:
                    self.cut()  # a key has one line
                    with self.lock:
                        self._lines.append(mine)
                        queue.put_nowait({"stream": "listening", "data": {"streams": asked["data"]["streams"]}})
        finally:
            with self.lock:
                self._lines = [one for one in self._lines if one is not mine]
            sending.cancel()
            await asyncio.wait([sending])

    async def _sends(self, queue: "asyncio.Queue[Any]", send: Any) -> None:
        while (frame := await queue.get()) is not None:
            content = frame if isinstance(frame, str) else json.dumps(frame)
            # Alpaca's paper address sends bytes, its live one text.
            sent = {"bytes": content.encode()} if self.binary else {"text": content}
            await send({"type": "websocket.send", **sent})
        await send({"type": "websocket.close", "code": 1011})
