"""HTTP/1.1 over real sockets, asked as fast as it answers: one request in flight on each connection."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import cast

Figures = tuple[float, float]
"""(requests a second, 99th percentile of their latencies in seconds)."""


async def load(port: int, connections: Sequence[Iterator[bytes]]) -> Figures:
    """Send each connection's requests, the next one as soon as the last is answered with 200. Raises RuntimeError."""
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    began = time.perf_counter()
    opened = [_Connection(requests, latencies) for requests in connections]
    for connection in opened:
        await loop.create_connection(lambda connection=connection: connection, "127.0.0.1", port)
    await asyncio.gather(*(connection.done for connection in opened))
    return figures(latencies, time.perf_counter() - began)


def figures(latencies: Sequence[float], took_s: float) -> Figures:
    """Return the figures of so many requests in so long."""
    return len(latencies) / took_s, sorted(latencies)[int(len(latencies) * 0.99)]


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], latencies: list[float]) -> None:
        self._requests = requests
        self._latencies = latencies
        self._buffer = b""
        self._sent = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def _ask(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            self.done.set_result(None)
            return
        self._sent = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        head, found, rest = data.partition(b"\r\n\r\n")
        at = head.find(b"content-length: ")
        if not found or len(rest) < int(head[at + 16 :].partition(b"\r")[0]):
            self._buffer = data
            return
        self._buffer = b""
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(data[:500].decode()))
            self._transport.close()
            return
        self._latencies.append(time.perf_counter() - self._sent)
        self._ask()
