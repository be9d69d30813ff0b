"""Gateways that serve WebSockets, and clients of them."""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Sequence
from typing import Any
from uuid import UUID, uuid4

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from services.api.main import Gateway
from services.api.service.feed import Feed, Told
from shared.contracts.alerts import NoticeRaised
from shared.process import HttpServer, http_server
from tests.api.conftest import Person
from tests.conftest import eventually


@contextlib.asynccontextmanager
async def http(gateway: Gateway) -> AsyncGenerator[tuple[HttpServer, str]]:
    """Serve a gateway over HTTP; the value is the server and "ws://..."."""
    server = http_server(gateway.app, "127.0.0.1", 0)
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    try:
        yield server, f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@contextlib.asynccontextmanager
async def serving(gateway: Gateway) -> AsyncGenerator[tuple[HttpServer, str]]:
    """The same, with its sockets told of what is new, and without Kafka."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(gateway.realtime.run())
        await eventually(lambda: gateway.realtime.health()[0])
        async with http(gateway) as up:
            yield up
        running.cancel()


def notice(user: UUID, title: str = "Bought 10 AAPL", **fields: Any) -> NoticeRaised:
    """An event to tell."""
    at = fields.pop("at")
    about: dict[str, Any] = {"id": uuid4(), "time": at, "at": at, "notice_id": uuid4(), "lines": ()}
    return NoticeRaised(**about, user_id=user, kind="order_filled", title=title)


async def tell(gateway: Gateway, *events: Told) -> None:
    """Record events as the consumer does."""
    feed = Feed(gateway.db, gateway.clock)
    await gateway.door.publish(lambda tx: feed.record(events, tx))


async def receive(socket: ClientConnection) -> dict[str, Any]:
    """The next message."""
    async with asyncio.timeout(30):
        return json.loads(await socket.recv())


@contextlib.asynccontextmanager
async def following(
    url: str, who: Person | None, since: str | None = None, **options: Any
) -> AsyncGenerator[tuple[ClientConnection, dict[str, Any]]]:
    """An open socket, after its hello."""
    path = "/realtime" if since is None else f"/realtime?since={since}"
    headers = who.headers if who is not None else {}
    async with connect(url + path, additional_headers=headers, proxy=None, **options) as socket:
        yield socket, await receive(socket)


async def end_of(socket: ClientConnection) -> int:
    """The code that a socket is closed with; what comes before is passed over."""
    with contextlib.suppress(ConnectionClosed):
        async with asyncio.timeout(30):
            while True:
                await socket.recv()
    assert socket.close_code is not None
    return socket.close_code


def titles(messages: Sequence[dict[str, Any]]) -> list[str]:
    """What was told."""
    return [message["data"]["title"] for message in messages]
