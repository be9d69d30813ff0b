"""What the payment service needs to know, from the environment (prefix OPENBELL_PAYMENT_)."""

from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from shared.settings import Settings

PRO: Final = {
    "name": "pro",
    "title": "Openbell Pro",
    "price_usd": "29",
    "period": "month",
    "entitlements": ["pro"],
    "trial_days": 7,
}


class PaymentSettings(Settings):
    """Plans, and who takes the money for them."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_PAYMENT_", env_file=".env", extra="ignore")

    plans: tuple[dict[str, Any], ...] = Field(default=(PRO,), min_length=1)
    """JSON: a list of plans; their fields are those of services.payment.domain.plans.Plan."""
    grace_days: int = Field(default=7, ge=0, le=365)
    """Days of access after the invoice that is not paid."""
    stripe_key: SecretStr | None = None
    """A secret or restricted key. Without one nothing is sold by card."""
    stripe_webhook_secrets: Annotated[tuple[SecretStr, ...] | None, NoDecode] = None
    """Comma-separated: whoever signs webhooks with one of them is Stripe."""
    stripe_base: str | None = None
    """Where Stripe's API is, if it is another one."""
    stripe_timeout_s: float = Field(default=20.0, gt=0)
    stripe_concurrency: int = Field(default=8, ge=1, le=100)
    """Objects that are fetched at once; Stripe allows about a hundred reads a second."""
    keep_webhooks_months: int = Field(default=3, ge=2)
    """Longer than the 30 days that the sweep looks back."""
    crypto_chains: tuple[dict[str, Any], ...] = ()
    """JSON: a list of chains; their fields are those of services.payment.domain.chains.Chain."""
    crypto_urls: dict[str, SecretStr] = Field(default_factory=dict)
    """JSON, by chain: its node's JSON-RPC address, or Esplora's. They often hold a key."""
    crypto_rates_usd: dict[str, Annotated[Decimal, Field(gt=0, allow_inf_nan=False)]] = Field(default_factory=dict)
    """JSON: fixed rates, {"BTC": "100000"}. When there are any, nobody is asked."""
    crypto_rates_url: str = "https://api.coinbase.com"
    """Who is asked for rates: GET /v2/prices/BTC-USD/spot."""
    crypto_depeg_limit: Decimal | None = Field(default=None, gt=0, lt=1)
    """A stablecoin that is further than this from one USD is not taken; unset, one is always worth one USD."""

    return_origins: Annotated[tuple[str, ...], NoDecode] = ("http://127.0.0.1:8100",)
    """Comma-separated: where a checkout and the portal may send people back to, and nowhere else."""
    return_url: str = "http://127.0.0.1:8100/"
    """Where they go when the request does not say; of one of these origins."""

    @field_validator("stripe_webhook_secrets", "return_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
