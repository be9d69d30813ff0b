"""What the gateway needs to know, from the environment (prefix OPENBELL_API_)."""

from typing import Final, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import SettingsConfigDict

from shared.settings import Settings

MIN_HS256_BYTES: Final = 32


class ApiSettings(Settings):
    """Secrets, other people's tokens, limits, and how to reach the services."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_API_", env_file=".env", extra="ignore")

    key_secret: SecretStr = SecretStr("development-only-api-key-secret-00000")
    """API keys are derived from it. Keys made before it changed keep working; lost answers cannot be shown again."""
    jwt_secret: SecretStr | None = None
    """Accept HS256 tokens of somebody else (for example Supabase) signed with this."""
    jwt_secret_before: SecretStr | None = None
    """And with this: the one before, while the issuer changes over."""
    jwks_url: str | None = None
    """Accept RS256, ES256 or EdDSA tokens whose keys are published here."""
    jwt_issuer: str | None = None
    jwt_audience: str | None = None
    principal_ttl_s: float = Field(default=5.0, ge=0, le=60)
    """A deleted key may work on another replica for so long."""

    user_quota: int = Field(default=600, ge=1)
    user_window_s: int = Field(default=60, ge=1)
    signup_quota: int = Field(default=5, ge=1)
    signup_window_s: int = Field(default=3600, ge=1)
    failure_quota: int = Field(default=30, ge=1)
    """Requests with wrong credentials from one address before it has to wait."""
    failure_window_s: int = Field(default=60, ge=1)
    trusted_proxies: int = Field(default=0, ge=0)
    """So many proxies of ours append to X-Forwarded-For; 0 means nobody does and the header is a lie."""

    require_plans: bool | None = None
    """Whether routes that belong to a plan ask for it; unset, they do in production only."""

    realtime_sockets: int = Field(default=5_000, ge=1)
    """WebSockets in one process of the gateway."""
    realtime_sockets_per_user: int = Field(default=10, ge=1)
    """... and of one user among them."""
    realtime_send_s: float = Field(default=10.0, gt=0)
    """A socket that takes longer to take a message is dropped."""
    realtime_check_s: float = Field(default=2.0, gt=0)
    """How often sockets are ended whose credential has ended."""
    realtime_keep_h: int = Field(default=24, ge=1)
    """How long a socket may have been away and still resume without a gap."""

    upstream_connect_s: float = Field(default=1.0, gt=0)
    upstream_read_s: float = Field(default=10.0, gt=0)
    upstream_connections: int = Field(default=100, ge=1)
    breaker_threshold: int = Field(default=5, ge=1)
    breaker_open_s: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.jwt_secret or self.jwt_secret_before or self.jwks_url) and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError("OPENBELL_API_JWT_ISSUER and _JWT_AUDIENCE are required to accept JWTs")
        for name in ("jwt_secret", "jwt_secret_before"):
            secret: SecretStr | None = getattr(self, name)
            if secret and len(secret.get_secret_value().encode()) < MIN_HS256_BYTES:
                raise ValueError(f"OPENBELL_API_{name.upper()} needs at least {MIN_HS256_BYTES} bytes")
        return self
