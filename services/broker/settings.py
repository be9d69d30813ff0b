"""What the brokerage needs to know, from the environment (prefix OPENBELL_BROKER_)."""

from decimal import Decimal
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

Amount = Annotated[Decimal, Field(gt=0, allow_inf_nan=False)]


class BrokerSettings(BaseSettings):
    """What may be traded, how much of it, and how venues are watched."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_BROKER_", env_file=".env", extra="ignore")

    trading: str = "paper"
    """Accounts that say live trade live only where this reads exactly `live`; anything else is paper."""
    plan: str | None = None
    """The entitlement that trading needs; unset, everybody may."""
    max_order_value: Amount = Decimal(100_000)
    """In the quote currency; the four limits hold for each account, which may set narrower ones."""
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
