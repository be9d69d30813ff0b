"""What the alerts service needs to know, from the environment (prefix OPENBELL_ALERTS_)."""

from decimal import Decimal
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, SecretStr
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings

DEVELOPMENT_KEYS: Final = "development-only:ZGV2ZWxvcG1lbnQtb25seS1jaGFubmVsLXRhcmdldHM="


class AlertsSettings(Settings):
    """Thresholds, channels and retention."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_ALERTS_", env_file=".env", extra="ignore")

    default_min_score: float = Field(default=60.0, ge=0, le=100)
    """Until a user's settings arrive; the gateway gives new users the same."""
    default_min_premium_usd: Decimal = Field(default=Decimal(0), ge=0)
    notify_step: float = Field(default=10.0, gt=0)
    """An alert rings again when its score rose by so many points."""
    best_few: int = Field(default=5, ge=1, le=20)
    """How many contracts an alert shows."""
    max_rules: int = Field(default=50, ge=0)

    public_url: str = "http://127.0.0.1:8100"
    """Where people reach the gateway: links in mails begin with it."""
    open_page: str | None = None
    """The path there of the page about an alert or a notice, such as /app/alerts/{id}; mails link to it."""
    target_keys: SecretStr = SecretStr(DEVELOPMENT_KEYS)
    """id:base64,id:base64, 32 bytes each: the first encrypts where channels go, all decrypt."""
    discord_base: str | None = None
    """An origin besides Discord's own that webhooks may have (http://127.0.0.1:8900); for development."""
    discord_concurrency: int = Field(default=32, ge=1)
    discord_replicas: int = Field(default=1, ge=1, le=100)
    """How many replicas send to Discord from one address: each takes its part of the refusals that Discord bears."""

    outward_base: str | None = None
    """An origin that signed webhooks and push endpoints may have although it is private; for development."""
    outward_concurrency: int = Field(default=16, ge=1)
    """How many messages of each of these channels may be on their way at once."""

    email_via: Literal["smtp", "sendgrid", "resend"] = "smtp"
    """Who takes mail. Without that one's host or key there is no e-mail channel."""
    sendgrid_api_key: SecretStr | None = None
    sendgrid_base: str = "https://api.sendgrid.com"
    """The European region has another one."""
    resend_api_key: SecretStr | None = None
    sendgrid_webhook_key: str | None = None
    """The verification key of its signed event webhook; without it none is taken at /alerts/webhooks/sendgrid."""
    resend_webhook_secret: SecretStr | None = None
    """The signing secrets of its webhook (whsec_...,whsec_...): all count, without one no webhook is taken."""
    resend_base: str = "https://api.resend.com"

    vapid_private_key: SecretStr | None = None
    """32 bytes in base64url. Without it there is no Web Push channel; another one ends all subscriptions."""
    vapid_subject: str = Field(default="mailto:alerts@openbell.invalid", pattern="^(mailto:|https:)")
    """Whom push services may ask about what we push."""
    apprise: bool = False
    """Whether users may give Apprise URLs."""
    apprise_hosts: tuple[str, ...] = ("ntfy.sh",)
    """Hosts, or host:port, that Apprise URLs may name, private ones as well."""
    fcm_service_account: Path | None = None
    """The key file of a service account of Firebase. Without it there is no FCM channel."""

    smtp_host: str | None = None
    smtp_port: int = 587
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_starttls: bool = True
    smtp_from: str = "Openbell <alerts@openbell.invalid>"
    """From whom mail is, whoever takes it: an address of a domain that is set up to send (docs/mail.md)."""
    smtp_concurrency: int = Field(default=4, ge=1)

    charts: bool = True
    """Whether alerts come with a picture."""
    chart_timeout_s: float = Field(default=2.0, gt=0)
    """How long a message waits for its picture; then it goes without."""
    charts_burst: int = Field(default=10, ge=1)
    """So many pictures may be drawn at once, later one in two seconds; messages beyond go without."""

    keep_alerts_months: int = Field(default=13, ge=1)
    keep_deliveries_months: int = Field(default=3, ge=1)
    keep_contracts_days: int = Field(default=10, ge=1)
