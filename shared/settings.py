"""What every service process needs to know, from the environment (prefix OPENBELL_). `.env` is read too.

What would surprise you: in a container a setting may also be a file of /run/secrets that has the variable's name.
Secrets come so, for no list of processes and no dump of the environment shows a file. A variable wins over its file.
"""

from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

SECRETS: Final = Path("/run/secrets")
LOOPBACK: Final = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


class _SecretFiles(SecretsSettingsSource):
    """An empty file is none: docker-compose.yml mounts one for each secret, also for those that nobody gave."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the file's content, None without any, beside the field's key and whether that is JSON."""
        value, key, is_json = super().get_field_value(field, field_name)
        return value or None, key, is_json


class Settings(BaseSettings):
    """What all settings are read from. What is wrong with one is told without showing it: it may be a secret."""

    model_config = SettingsConfigDict(hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first."""
        folder = getattr(file_secret_settings, "secrets_dir", None) or (SECRETS if SECRETS.is_dir() else None)
        return init_settings, env_settings, dotenv_settings, _SecretFiles(settings_cls, folder)


class SharedSettings(Settings):
    """Addresses and secrets shared by all services."""

    model_config = SettingsConfigDict(env_prefix="OPENBELL_", env_file=".env", extra="ignore")

    environment: Literal["development", "production"] = "development"
    database_url: str = "postgresql://127.0.0.1:5432/openbell"
    """Without a user: each service logs in as its own role, openbell_<service>."""
    database_password: SecretStr | None = None
    database_pool_size: int = Field(default=12, ge=2)
    kafka_bootstrap: str = "127.0.0.1:9092"
    kafka_ca: Path | None = None
    """The certificate that Kafka's are signed with. With it connections are encrypted, without it they are plain."""
    kafka_user: str | None = None
    """Logs in by SCRAM-SHA-512, with the password."""
    kafka_password: SecretStr | None = None
    kafka_static_members: bool = False
    """Give group members fixed names; only for the embedded broker, which never expires a dead member."""
    kafka_small_topics: bool = False
    """Cap every topic at 2 MB; only for the embedded broker, which rewrites its one data file at each flush."""
    identity_secret: SecretStr = SecretStr("development-only-identity-secret-0000")
    """Comma-separated, at least 32 characters each: the first signs the identity that the gateway hands to services."""
    http_host: str = "127.0.0.1"
    http_port: int = 0
    operator_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = LOOPBACK
    """Comma-separated. Who connects from there, no proxy between, may read /metrics and what /readyz is made of."""
    upstreams: dict[str, str] = Field(default_factory=dict)
    """Where the gateway finds each service over HTTP: {"detector": "http://127.0.0.1:8102"}."""
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)] = "INFO"
    otlp_endpoint: str | None = None
    trace_sample_ratio: float = Field(default=0.1, ge=0, le=1)

    @field_validator("operator_networks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    def service_database_url(self, service: str) -> str:
        """Return the database URL with the service's own role."""
        scheme, _, rest = self.database_url.partition("://")
        password = f":{self.database_password.get_secret_value()}" if self.database_password else ""
        return f"{scheme}://openbell_{service}{password}@{rest.rpartition('@')[2]}"
