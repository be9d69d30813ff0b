"""What the brokerage needs to know, from the environment (prefix OPENBELL_BROKER_)."""

from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.settings import Settings

DEVELOPMENT_KEYS: Final = "development-only:ZGV2ZWxvcG1lbnQtb25seS1jcmVkZW50aWFsLWtleS0="
Amount = Annotated[Decimal, Field(gt=0, allow_inf_nan=False)]


class BrokerSettings(Settings):
    """What may be traded, how much of it, and how venues are watched."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_BROKER_", env_file=".env", extra="ignore")

    trading: str = "paper"
    """Accounts that say live trade live only where this reads exactly `live`; anything else is paper."""
    plan: str | None = None
    """The entitlement that trading needs; unset, everybody may."""
    max_order_value: Amount = Decimal(100_000)
    """In the quote currency, or in USD where that is a coin; the four limits hold for each account, which may set
    narrower ones."""
    max_position_value: Amount = Decimal(500_000)
    max_orders_a_minute: int = Field(default=60, ge=1, le=100_000)
    duplicate_window_s: float = Field(default=5.0, ge=0, le=60)
    """The same terms again within this are taken for a slip."""
    collar: Annotated[Decimal, Field(gt=0, le=1)] = Decimal("0.05")
    """A limit may be worse than the market by this share."""
    quote_age_s: float = Field(default=60.0, gt=0, le=86_400)
    """An older quote is none. A source that tells with delay needs more: 1,200 for one of 15 minutes."""
    concurrency: int = Field(default=32, ge=1, le=200)
    """Calls at venues at once."""
    reconcile_s: float = Field(default=3600.0, ge=10)
    """How often an account is compared with its venue, besides at the start and after each gap."""
    quiet_s: float = Field(default=60.0, ge=5)
    """An order that works and of which nothing was heard for so long is looked up."""
    exchanges: Annotated[tuple[str, ...] | None, NoDecode] = None
    """Comma-separated: crypto exchanges by their ids at ccxt (kraken, binance); each is the venue ccxt-<id>."""
    paper_slippage_bps: Annotated[Decimal, Field(ge=0, le=1000)] = Decimal(1)
    """How much worse than the quote the paper venue fills, in hundredths of a percent; never beyond a limit."""
    paper_latency_ms: int = Field(default=0, ge=0, le=60_000)
    """How long an order is on its way to the paper venue's book."""
    credential_keys: SecretStr = SecretStr(DEVELOPMENT_KEYS)
    """id:base64,id:base64, 32 bytes each: the first encrypts accounts' credentials, all decrypt."""
    callback_secrets: dict[str, SecretStr] = Field(default_factory=dict)
    """JSON, by venue: what its callbacks are signed with; several separated by commas while one is changed."""
    oauth_venues: tuple[dict[str, Any], ...] = Field(default=(), repr=False)
    """JSON: a list of venues with OAuth; their fields are those of services.broker.domain.oauth.OAuthVenue."""

    @field_validator("exchanges", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
