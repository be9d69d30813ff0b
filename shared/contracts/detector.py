"""What the detector tells: unusual options activity and the leaderboard made of it."""

from datetime import date
from decimal import Decimal
from typing import ClassVar, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict

from shared.contracts.base import Event
from shared.contracts.topics import ACTIVITY, LEADERBOARD, Topic

Side = Literal["above_ask", "ask", "mid", "bid", "below_bid", "unknown"]


class ScoreParts(BaseModel):
    """The points that add up to a score of 0 to 100 (services/detector/domain/scoring.py states each one's curve)."""

    model_config = ConfigDict(frozen=True)

    volume_oi: float
    premium: float
    otm: float
    dte: float
    side: float
    change: float


class UnusualContract(BaseModel):
    """One option contract that met the rule set."""

    model_config = ConfigDict(frozen=True)

    contract: str  # OCC symbol without padding
    right: Literal["C", "P"]
    expiration: date
    strike: Decimal
    bid: Decimal | None
    ask: Decimal | None
    last: Decimal
    volume: int
    open_interest: int
    volume_oi_ratio: float
    volume_change: int  # since the last snapshot of the same session; the whole volume in the first
    premium_usd: Decimal  # volume x last x 100 shares: an upper estimate, for one price stands for all trades
    dte: int  # calendar days from the session to expiration
    otm_pct: float | None  # percent out of the money, negative in the money; None without an underlying price
    iv: float | None
    side: Side
    score: float  # 0 to 100
    parts: ScoreParts


class ActivityDetected(Event):
    """The contracts of one chain snapshot that are unusual, best score first. Never empty.

    A snapshot with very many is told in several events of at most 500 contracts, in order.
    """

    type: ClassVar[str] = "detector.activity.detected.v1"
    topic: ClassVar[Topic] = ACTIVITY

    symbol: str
    session: date
    as_of: AwareDatetime
    source: str
    simulated: bool
    delay_s: float
    underlying_usd: Decimal | None
    contracts: tuple[UnusualContract, ...]

    @property
    def key(self) -> str:
        """The underlying's symbol."""
        return self.symbol


class LeaderboardEntry(BaseModel):
    """One place on the leaderboard."""

    model_config = ConfigDict(frozen=True)

    rank: int
    contract: str
    symbol: str
    score: float
    premium_usd: Decimal
    volume: int
    open_interest: int
    simulated: bool


class LeaderboardChanged(Event):
    """The session's best contracts, 100 at most, best first, after the minute that `as_of` ends."""

    type: ClassVar[str] = "detector.leaderboard.changed.v1"
    topic: ClassVar[Topic] = LEADERBOARD

    session: date
    as_of: AwareDatetime
    symbols_scanned: int
    entries: tuple[LeaderboardEntry, ...]

    @property
    def key(self) -> str:
        """One leaderboard, one order."""
        return "leaderboard"
