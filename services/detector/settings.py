"""What an operator may change about detection (prefix OPENBELL_DETECTOR_)."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings


class DetectorSettings(Settings):
    """Thresholds of the rule, sizes of the leaderboard, and how long things are kept."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_DETECTOR_", env_file=".env", extra="ignore")

    min_volume: float = Field(default=500, ge=0)
    """A contract's volume in the session must be above this; the four defaults are Barchart's."""
    min_open_interest: float = Field(default=100, ge=0)
    """Its open interest must be above this."""
    min_last_usd: float = Field(default=0.10, ge=0)
    """Its last price must be above this."""
    min_volume_oi_ratio: float = Field(default=1.25, ge=0)
    """Volume / open interest must be at least this."""

    board_size: int = Field(default=100, ge=1, le=1000)
    """Places on the leaderboard."""
    board_least: int = Field(default=5, ge=1)
    """So many contracts of a minute may enter the board, however few symbols were scanned ..."""
    board_share: float = Field(default=0.01, gt=0, le=1)
    """... or this share of the number of symbols scanned, when it is more."""
    board_interval_s: float = Field(default=2.0, gt=0)
    """How often the board takes in what was found."""

    activity_days: int = Field(default=90, ge=1)
    """Sessions older than this are dropped from the activity."""
    board_days: int = Field(default=30, ge=1)
    """Sessions older than this are dropped from the board's history."""
