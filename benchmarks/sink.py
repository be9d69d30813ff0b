"""Where deliveries go: a server in a process of its own that takes every post at once, for a few microseconds each.

It answers as Discord does and enforces nothing. `seen` tells when what few people watch arrived (the stand-in for
Discord in tests/fakes enforces the limits, and takes a hundred times as long).
"""

import asyncio
import itertools
import json
import re
import secrets
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx
import uvloop

from benchmarks.stack import ROOT

LOOKED_AT: Final = 8_000  # bytes of a post: behind them lies the picture
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PLACE: Final = re.compile(rb"\b(Q\d{3})\b")
_DAY: Final = re.compile(rb"\b(\d{4}-\d\d-\d\d)\b")
_HEADERS: Final = b"content-type: application/json\r\nvia: 1.1 bench\r\nx-ratelimit-remaining: 4\r\n"


@dataclass
class _Taken:
    posts: int = 0
    seen: list[tuple[str, list[str], float]] = field(default_factory=list[tuple[str, list[str], float]])
    ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1_200_000_000_000_000_000))


class _Taking(asyncio.Protocol):
    """One connection."""

    def __init__(self, taken: _Taken) -> None:
        self._taken = taken
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (ends := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, ends + 2)
            whole = ends + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < whole:
                return
            head, body = bytes(self._buffer[:ends]), bytes(self._buffer[ends + 4 : min(whole, ends + 4 + LOOKED_AT)])
            del self._buffer[:whole]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        taken = self._taken
        if head.startswith(b"GET"):
            content = json.dumps({"posts": taken.posts, "seen": taken.seen}).encode()
            taken.seen = []
        else:
            taken.posts += 1
            if place := _PLACE.search(body):
                taken.seen.append((place[1].decode(), [day.decode() for day in _DAY.findall(body)], time.time()))
            content = b'{"id": "%d", "type": 0}' % next(taken.ids)
        self._transport.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (_HEADERS, len(content), content))


class Sink:
    """What runs, as the benchmark sees it."""

    def __init__(self, base: str, http: httpx.AsyncClient) -> None:
        self.base = base
        self._http = http
        self._numbers = itertools.count(1)

    def webhook(self) -> str:
        """Return the address of one more webhook."""
        return f"{self.base}/api/webhooks/{next(self._numbers)}/{secrets.token_urlsafe(51)}"

    async def seen(self) -> tuple[int, list[tuple[str, list[str], float]]]:
        """Return how many posts came, and (symbol, days it may be of, Unix time) of those seen since the last call."""
        told = (await self._http.get(self.base)).json()
        return told["posts"], told["seen"]


@asynccontextmanager
async def sink() -> AsyncGenerator[Sink]:
    """Run it as a process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.sink"), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        port = int(await process.stdout.readline())
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            yield Sink(f"http://127.0.0.1:{port}", http)
    finally:
        process.terminate()
        await process.wait()


async def _serve() -> None:
    taken = _Taken()
    server = await asyncio.get_running_loop().create_server(lambda: _Taking(taken), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve())
