"""Door 2, HTTP: the leaderboard, its history, and a symbol's unusual contracts."""

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated

import msgspec
from litestar import get
from litestar.params import FromPath, QueryParameter
from litestar.types import ControllerRouterHandler

from services.detector.service import Detector
from shared.contracts.detector import Side
from shared.db import Row
from shared.errors import Invalid
from shared.http import Caller
from shared.messaging.door import Door

SessionQuery = Annotated[date | None, QueryParameter(description="A trading date; the newest one by default")]


class Place(msgspec.Struct, frozen=True):
    """One place on the leaderboard."""

    rank: int
    contract: str
    symbol: str
    score: float
    premium_usd: Decimal
    volume: int
    open_interest: int
    simulated: bool


class Board(msgspec.Struct, frozen=True):
    """The session's best contracts at `as_of`, the end of a minute. All null before the first scan ever."""

    session: date | None
    as_of: datetime | None
    symbols_scanned: int
    entries: list[Place]


class BoardMinute(msgspec.Struct, frozen=True):
    """A minute of the board's history; ask `/leaderboard?at=<as_of>` for its entries."""

    session: date
    as_of: datetime
    symbols_scanned: int
    places: int
    best_contract: str | None
    best_score: float | None


class Parts(msgspec.Struct, frozen=True):
    """The points that make a score."""

    volume_oi: float
    premium: float
    otm: float
    dte: float
    side: float
    change: float


class Unusual(msgspec.Struct, frozen=True):
    """An unusual contract as its newest snapshot shows it, and its best score of the session."""

    contract: str
    right: str
    expiration: date
    strike: Decimal
    bid: Decimal | None
    ask: Decimal | None
    last: Decimal
    volume: int
    open_interest: int
    volume_oi_ratio: float
    volume_change: int
    premium_usd: Decimal
    dte: int
    otm_pct: float | None
    iv: float | None
    side: Side
    score: float
    parts: Parts
    best_score: float
    first_as_of: datetime
    as_of: datetime
    underlying_usd: Decimal | None
    source: str
    simulated: bool


class Activity(msgspec.Struct, frozen=True):
    """A symbol's unusual contracts of one session, best first; `session` is null when there are none."""

    symbol: str
    session: date | None
    contracts: list[Unusual]


def handlers(detector: Detector, door: Door) -> list[ControllerRouterHandler]:
    """Return the routes."""

    @get("/leaderboard", caller=Caller.USER)
    async def leaderboard(
        session: SessionQuery = None,
        at: Annotated[datetime | None, QueryParameter(description="The board as it stood then")] = None,
    ) -> Board:
        """Return the best 100 contracts of the session, now or as they stood at a time."""
        if at is not None and at.tzinfo is None:
            raise Invalid("`at` needs a time zone: 2026-07-24T15:32:00Z")
        async with door.read() as tx:
            row = await detector.board(session, at, tx)
        return Board(None, None, 0, []) if row is None else as_board(row)

    @get("/leaderboard/history", caller=Caller.USER)
    async def leaderboard_history(
        session: SessionQuery = None,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 390,
    ) -> list[BoardMinute]:
        """Return the minutes that have a board, newest first."""
        async with door.read() as tx:
            rows = await detector.history(session, limit, tx)
        return [as_minute(row) for row in rows]

    @get("/activity/{symbol:str}", caller=Caller.USER)
    async def activity(
        symbol: FromPath[str],
        session: SessionQuery = None,
        limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
    ) -> Activity:
        """Return the unusual contracts of a symbol, best score of the session first."""
        async with door.read() as tx:
            rows = await detector.activity(symbol, session, limit, tx)
        return Activity(symbol.upper(), rows[0]["session"] if rows else session, [as_unusual(row) for row in rows])

    return [leaderboard, leaderboard_history, activity]


def as_board(row: Row) -> Board:
    """Return a stored board as it is served."""
    entries = msgspec.convert(row["entries"], list[Place])
    return Board(row["session"], row["minute"], row["symbols_scanned"], entries)


def as_minute(row: Row) -> BoardMinute:
    """Return a line of the history as it is served."""
    return BoardMinute(
        row["session"],
        row["minute"],
        row["symbols_scanned"],
        row["places"],
        row["best_contract"],
        row["best_score"],
    )


def as_unusual(row: Row) -> Unusual:
    """Return a stored contract as it is served."""
    around = ("best_score", "first_as_of", "as_of", "underlying_usd", "source", "simulated")
    return msgspec.convert({**row["detail"], **{name: row[name] for name in around}}, Unusual)
