"""Settings of the data service, from the environment (prefix OPENBELL_DATA_)."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.settings import Settings


class DataSettings(Settings):
    """Where chains come from, and how often and how fast to ask."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_DATA_", env_file=".env", extra="ignore")

    source: Literal["auto", "cboe", "replay", "simulator"] = "auto"
    """auto: replay if `replay_dir` is set, else Cboe if it answers within 2 s, else the simulator."""
    symbols: Annotated[tuple[str, ...], NoDecode] = (
        *("SPY", "QQQ", "IWM", "AAPL", "AMD", "AMZN", "BAC", "DIS", "GOOG", "GOOGL"),
        *("IBM", "INTC", "JPM", "META", "MSFT", "NFLX", "NVDA", "PLTR", "TSLA", "XOM"),
    )
    """Comma-separated. The simulator has five of them, a replay exactly what its folder has."""
    max_watched: int = Field(default=100, ge=0)
    """Symbols besides these that are collected because users watch them, those of most users first."""
    poll_every_s: float = Field(default=60.0, gt=0)
    batch: int = Field(default=4, ge=1)
    """Symbols asked for at the same time."""

    cboe_base_url: str = "https://cdn.cboe.com"
    cboe_rate_per_s: float = Field(default=2.0, gt=0)
    cboe_timeout_s: float = Field(default=20.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    breaker_threshold: int = Field(default=5, ge=1)
    """Fetches that fail in a row, each after its attempts, before asking stops for `breaker_s`."""
    breaker_s: float = Field(default=60.0, gt=0)

    replay_dir: Path | None = None
    replay_pace_s: float = Field(default=0.0, ge=0)

    pairs: Annotated[tuple[str, ...], NoDecode] = (
        *("BTC/USD", "ETH/USD", "SOL/USD", "XRP/USD", "DOGE/USD", "LTC/USD", "BCH/USD", "LINK/USD", "AVAX/USD"),
        *("DOT/USD", "UNI/USD", "AAVE/USD", "SHIB/USD", "USDC/USD", "USDT/USD", "ETH/BTC", "BTC/USDT", "ETH/USDT"),
    )
    """Comma-separated: crypto pairs that are quoted; none are where it is empty."""
    pairs_source: Literal["auto", "alpaca", "simulator"] = "auto"
    """auto: Alpaca where chains come from Cboe, the simulator where they are simulated, nobody with a replay."""
    pairs_every_s: float = Field(default=5.0, gt=0)
    alpaca_base_url: str = "https://data.alpaca.markets"

    simulator_seed: int = Field(default=1, ge=0)
    simulator_unusual: int = Field(default=48, ge=0)
    """Unusual prints a symbol and session."""
    simulator_session_s: float = Field(default=86_400.0, gt=0, le=86_400.0)
    """Wall-clock seconds of a simulated session; below a day its dates run ahead of the calendar."""
    simulator_tick_s: float = Field(default=2.0, gt=0)
    """Seconds between quotes."""
    simulator_poll_every_s: float = Field(default=10.0, gt=0)

    @field_validator("symbols", "pairs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
