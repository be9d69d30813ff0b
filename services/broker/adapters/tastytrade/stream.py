"""tastytrade's account streamer: a WebSocket that tells each order whole, as HTTP would, whenever something changes.

What would surprise you: every heartbeat carries an access token, and the line lives no longer than the last one does.
"""

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from services.broker.adapters.tastytrade.shapes import id_of, report_of
from services.broker.adapters.tastytrade.wire import AGENT, Json, Wire
from services.broker.ports import Update
from shared.errors import OpenbellError, Transient

BEAT_S: Final = 15.0
SILENT_S: Final = 40.0
OPEN_S: Final = 15.0

_LOST: Final = (WebSocketException, OSError, TimeoutError)


@dataclass(frozen=True, slots=True)
class Streamer:
    """Where it answers, whose orders it tells, how often we beat, and after how long a silence it is lost."""

    url: str
    account: str
    beat_s: float = BEAT_S
    silent_s: float = SILENT_S


@contextlib.asynccontextmanager
async def listening(of: Streamer, wire: Wire) -> AsyncGenerator[AsyncIterator[Update]]:
    """Listen to an account's orders. Raises Transient, VenueRefused and Busy when it cannot be opened."""
    logging.getLogger("websockets").setLevel(logging.WARNING)  # below it the library logs frames, tokens in them
    token = await wire.token()
    try:
        line = await connect(of.url, user_agent_header=AGENT, open_timeout=OPEN_S, close_timeout=1)
    except _LOST as error:
        raise Transient(f"tastytrade's streamer is not reachable: {type(error).__name__}") from None
    beats: asyncio.Task[None] | None = None
    try:
        await _connected(line, of.account, token, wire)
        beats = asyncio.create_task(_beat(line, wire, of.beat_s), name="tastytrade heartbeat")
        async with contextlib.aclosing(_updates(line, of.silent_s)) as updates:
            yield updates
    finally:
        if beats is not None:
            beats.cancel()
            await asyncio.wait([beats])
        await line.close()


async def _connected(line: ClientConnection, account: str, token: str, wire: Wire) -> None:
    """Ask for the account's messages and wait until they are promised; before that none are sent."""
    try:
        async with asyncio.timeout(OPEN_S):
            await line.send(_frame("connect", token, 1, [account]))
            while (answer := _read(await line.recv())).get("action") != "connect":
                pass
    except _LOST as error:
        raise Transient(f"tastytrade's streamer broke off: {type(error).__name__}") from None
    if answer.get("status") != "ok":
        with contextlib.suppress(OpenbellError):
            await wire.token(instead_of=token)  # the next attempt has another one
        raise Transient("tastytrade's streamer does not take the connection")


async def _beat(line: ClientConnection, wire: Wire, beat_s: float) -> None:
    """Send heartbeats. What goes wrong closes the line, and its reader tells."""
    try:
        for number in itertools.count(2):
            await asyncio.sleep(beat_s)
            await line.send(_frame("heartbeat", await wire.token(), number))
    except (OpenbellError, *_LOST):
        await line.close()


async def _updates(line: ClientConnection, silent_s: float) -> AsyncGenerator[Update]:
    while True:
        try:
            async with asyncio.timeout(silent_s):
                told = _read(await line.recv())
        except _LOST as error:
            raise Transient(f"tastytrade's streamer is lost: {type(error).__name__}") from None
        if told.get("status") == "error":
            raise Transient("tastytrade's streamer refused a message")
        for one in told.get("results") or (told,):
            if one.get("type") == "Order" and (update := _update(one)) is not None:
                yield update


def _update(told: Json) -> Update | None:
    try:
        order_id = id_of(told["data"])
        return None if order_id is None else Update(order_id, report_of(told["data"], streamed=True))
    except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError):
        raise Transient("tastytrade's streamer told of an order that cannot be read") from None


def _read(frame: str | bytes) -> Json:
    try:
        told: Any = json.loads(frame, parse_float=Decimal)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise Transient("tastytrade's streamer sent what cannot be read")
    return told


def _frame(action: str, token: str, number: int, value: list[str] | None = None) -> str:
    made: dict[str, Any] = {"action": action, "auth-token": f"Bearer {token}", "request-id": number}
    return json.dumps(made if value is None else {**made, "value": value})
