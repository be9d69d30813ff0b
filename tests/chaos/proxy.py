"""A TCP proxy that can be told to misbehave: between a client and a server on 127.0.0.1.

Faults strike a share of the connections that are open, and (latency, stall) those that open while they last.
"""

import asyncio
import contextlib
import socket
import struct
from random import Random
from typing import Literal

Side = Literal["client", "server"]


class Proxy:
    """Carries bytes from `port` to `upstream`; both on 127.0.0.1."""

    def __init__(self, upstream: int, random: Random) -> None:
        self.upstream = upstream
        self.port = 0
        self._random = random
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.hides_ends = False
        """When a server ends a connection, its client hears the last bytes and not the end."""
        self._latency_s = 0.0
        self._stalled = False

    async def start(self, listener: socket.socket | None = None) -> None:
        """Listen on a free port, or on a socket that is bound already."""
        if listener is None:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._accept, sock=listener, limit=1 << 18)

    async def stop(self) -> None:
        """Close everything."""
        if self._server is not None:
            self._server.close()
        self._stalled = False
        tasks = [link.task for link in self._links if link.task is not None]
        for link in list(self._links):
            link.cut("client")
            link.cut("server")
            link.end()
        if tasks:
            await asyncio.wait(tasks, timeout=5)

    def upstream_ports(self) -> list[int]:
        """The ports that the server sees its clients on."""
        return [link.port for link in self._links]

    def reset(self, share: float = 1.0) -> int:
        """Cut connections with RST towards both sides; return how many."""
        struck = self._some(share)
        for link in struck:
            link.cut("client")
            link.cut("server")
        return len(struck)

    def half_open(self, survivor: Side, share: float = 1.0) -> int:
        """Cut connections towards one side only: the survivor hears nothing, ever, and no end. Return how many."""
        struck = self._some(share)
        for link in struck:
            link.silent = True
            link.cut("server" if survivor == "client" else "client")
        return len(struck)

    def let_go(self) -> None:
        """End what is half open, as a keepalive would at last."""
        for link in list(self._links):
            if link.silent:
                link.cut("client")
                link.cut("server")
                link.end()

    @contextlib.contextmanager
    def latency(self, seconds: float):
        """Delay every chunk, both ways."""
        self._latency_s = seconds
        try:
            yield
        finally:
            self._latency_s = 0.0

    @contextlib.contextmanager
    def stalled(self):
        """Carry nothing; what was held back goes on afterwards."""
        self._stalled = True
        try:
            yield
        finally:
            self._stalled = False

    def _some(self, share: float) -> "list[_Link]":
        links = sorted(self._links, key=lambda link: link.port)
        return [link for link in links if self._random.random() < share]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        link.task = asyncio.current_task()
        self._links.add(link)
        try:
            await self._wait_through_stall()
            try:
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream, limit=1 << 18)
            except OSError:
                return
            link.connected(up_writer)
            ways = [
                asyncio.create_task(self._carry(link, reader, up_writer)),
                asyncio.create_task(self._carry(link, up_reader, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                if link.silent or self.hides_ends:
                    link.silent = True
                    await link.ended.wait()
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            link.cut("client")
            link.cut("server")
            self._links.discard(link)

    async def _carry(self, link: "_Link", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                await self._wait_through_stall()
                if self._latency_s:
                    await asyncio.sleep(self._latency_s)
                if link.silent:
                    return
                writer.write(data)
                await writer.drain()

    async def _wait_through_stall(self) -> None:
        while self._stalled:  # noqa: ASYNC110 - a test's server, and this is its fault
            await asyncio.sleep(0.02)


class _Link:
    """One connection through the proxy."""

    def __init__(self, client: asyncio.StreamWriter) -> None:
        self.port = 0
        self.silent = False
        self.ended = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._writers: dict[Side, asyncio.StreamWriter] = {"client": client}

    def connected(self, server: asyncio.StreamWriter) -> None:
        self._writers["server"] = server
        self.port = server.get_extra_info("sockname")[1]

    def cut(self, side: Side) -> None:
        """Drop one side with RST."""
        writer = self._writers.pop(side, None)
        if writer is None:
            return
        raw: socket.socket | None = writer.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    def end(self) -> None:
        """Let it be forgotten."""
        self.ended.set()
