"""Alpaca's trade_updates: a WebSocket that tells what happens to the account's orders.

A frame tells one execution's quantity and price, and the order as it is after it, whose filled quantity and average
price are cumulative. Frames come as text or as bytes, and more than once, then with the same execution id.

What would surprise you: Alpaca allows a key one line; another one may end this one at any time.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from services.broker.ports import VenueRefused
from shared.errors import Transient

Json = Any

_OPEN_S: Final = 10.0
_LARGEST: Final = 2**22
_LOGGER: Final = "services.broker.adapters.alpaca.line"


class Line:
    """Opens lines to one address with one account's keys. A silent one is lost after twice `ping_s`."""

    def __init__(self, base: str, key_id: str, secret_key: str, *, ping_s: float) -> None:
        self._url = f"ws{base.rstrip('/').removeprefix('http')}/stream"
        self._auth = json.dumps({"action": "auth", "key": key_id, "secret": secret_key})
        self._ping_s = ping_s
        self._logger = logging.getLogger(_LOGGER)
        self._logger.setLevel(logging.WARNING)  # below it the library writes frames, parts of the keys among them

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncGenerator[Json]]:
        """Authenticate and listen; the iterator yields the data of trade updates. Raises Transient, VenueRefused."""
        try:
            line = await connect(
                self._url,
                open_timeout=_OPEN_S,
                ping_interval=self._ping_s,
                ping_timeout=self._ping_s,
                close_timeout=1,
                max_size=_LARGEST,
                compression=None,  # frames are small
                logger=self._logger,
            )
        except (OSError, WebSocketException) as error:  # a TimeoutError is an OSError
            raise Transient(f"Alpaca's stream does not open: {type(error).__name__}") from None
        try:
            await self._begin(line)
            yield _updates(line)
        finally:
            await line.close()

    async def _begin(self, line: ClientConnection) -> None:
        try:
            async with asyncio.timeout(_OPEN_S):
                await line.send(self._auth)
                told = await _answer(line, "authorization")
                if told.get("status") != "authorized":
                    raise VenueRefused("Alpaca's stream does not take the account's keys")
                await line.send(json.dumps({"action": "listen", "data": {"streams": ["trade_updates"]}}))
                told = await _answer(line, "listening")
        except (ConnectionClosed, TimeoutError) as error:
            raise Transient(f"Alpaca's stream does not begin: {type(error).__name__}") from None
        if "trade_updates" not in (told.get("streams") or ()):
            raise Transient("Alpaca's stream does not tell of trade updates")


async def _answer(line: ClientConnection, stream: str) -> Json:
    """Return the data of the first frame of that name."""
    while True:
        frame = _decoded(await line.recv())
        if frame["stream"] == stream:
            return frame["data"]


async def _updates(line: ClientConnection) -> AsyncGenerator[Json]:
    while True:
        try:
            frame = _decoded(await line.recv())
        except ConnectionClosed as error:
            raise Transient(f"Alpaca's stream is lost: {type(error).__name__}") from None
        if frame["stream"] == "trade_updates":
            yield frame["data"]


def _decoded(frame: str | bytes) -> Json:
    """Return a frame. One that cannot be read ends the line: what it said is then asked for."""
    try:
        told = json.loads(frame, parse_float=Decimal)
        if isinstance(told["stream"], str) and isinstance(told["data"], dict):
            return told
    except (ValueError, TypeError, LookupError):
        pass
    raise Transient("a frame of Alpaca's stream cannot be read")
