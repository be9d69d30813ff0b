"""A small Cboe on a real port: answers by symbol, ETags, 304, and the ways in which it can fail."""

import asyncio
import hashlib
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_REASONS = {200: "OK", 304: "Not Modified", 403: "Forbidden", 404: "Not Found", 429: "Too Many", 500: "Error"}


def row(contract: str, **fields: Any) -> dict[str, Any]:
    """One contract as Cboe writes it."""
    return {
        "option": contract,
        "bid": 1.0,
        "ask": 1.1,
        "last_trade_price": 1.05,
        "volume": 10.0,
        "open_interest": 100.0,
        "iv": 0.3,
        "delta": 0.5,
        "gamma": 0.01,
        "theta": -0.02,
        "vega": 0.1,
    } | fields


def answer(
    symbol: str = "AAPL",
    *,
    timestamp: Any = "2026-07-24 18:00:00",
    rows: Any = None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A whole option answer."""
    rows = [row("AAPL260821C00330000"), row("AAPL260821P00330000")] if rows is None else rows
    fields = {
        "symbol": symbol,
        "options": rows,
        "close": 333.02,
        "current_price": 340.0,
        "bid": 333.0,
        "ask": 333.1,
    }
    return {"timestamp": timestamp, "symbol": symbol, "data": fields | dict(data or {})}


@dataclass
class Reply:
    """What to say: a body (None: never answer), a status, headers."""

    body: bytes | None = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Asked:
    """A request that came in."""

    path: str
    headers: dict[str, str]


class FakeCboe:
    """Replies queue by symbol; the last one stays. A symbol without replies is unknown (403)."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.blocked = False  # refuses everything (403)
        self._replies: dict[str, deque[Reply]] = {}
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def says(self, symbol: str, *replies: Reply | Mapping[str, Any] | bytes) -> None:
        queue = self._replies.setdefault(symbol, deque())
        for reply in replies:
            if isinstance(reply, Reply):
                queue.append(reply)
            else:
                queue.append(Reply(reply if isinstance(reply, bytes) else json.dumps(reply).encode()))

    def forget(self, symbol: str) -> None:
        self._replies.pop(symbol, None)

    def symbols_asked(self) -> list[str]:
        return [one.path.rpartition("/")[2].removesuffix(".json") for one in self.asked]

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._open):
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = lines[0].split(" ")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines[1:] if line)
                }
                if method == "HEAD":
                    await self._send(writer, Reply(status=403 if self.blocked else 404), with_body=False)
                    continue
                self.asked.append(Asked(path, headers))
                reply = self._reply_to(path, headers)
                if reply.body is None:
                    await reader.read()  # until the client gives up
                    return
                await self._send(writer, reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    def _reply_to(self, path: str, headers: Mapping[str, str]) -> Reply:
        queue = self._replies.get(path.rpartition("/")[2].removesuffix(".json"))
        if not queue or self.blocked:
            return Reply(b"<Error>AccessDenied</Error>", 403)
        reply = queue.popleft() if len(queue) > 1 else queue[0]
        if reply.status != 200 or reply.body is None:
            return reply
        etag = f'"{hashlib.sha1(reply.body, usedforsecurity=False).hexdigest()}"'
        if headers.get("if-none-match") == etag:
            return Reply(b"", 304, {"etag": etag})
        return Reply(reply.body, 200, {"etag": etag, "content-type": "application/json"} | reply.headers)

    @staticmethod
    async def _send(writer: asyncio.StreamWriter, reply: Reply, *, with_body: bool = True) -> None:
        body = reply.body or b""
        head = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Other')}"]
        head += [f"{name}: {value}" for name, value in reply.headers.items()]
        if reply.status != 304:
            head.append(f"content-length: {len(body)}")
        writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + (body if with_body else b""))
        await writer.drain()
