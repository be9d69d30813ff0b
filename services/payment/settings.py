"""What the payment service needs to know, from the environment (prefix OPENBELL_PAYMENT_)."""

from typing import Any, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PRO: Final = {
    "name": "pro",
    "title": "Openbell Pro",
    "price_usd": "29",
    "period": "month",
    "entitlements": ["pro"],
    "trial_days": 7,
}


class PaymentSettings(BaseSettings):
    """Plans, and who takes the money for them."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_PAYMENT_", env_file=".env", extra="ignore")

    plans: tuple[dict[str, Any], ...] = Field(default=(PRO,), min_length=1)
    """JSON: a list of plans; their fields are those of services.payment.domain.plans.Plan."""
