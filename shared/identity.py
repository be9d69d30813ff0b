"""Who calls: the identity that the gateway signs for one request to one service, and what it allows.

The gateway authenticates people and keys; services trust nothing but this short-lived token in the header
`x-openbell-identity` (HS256, 60 seconds, audience = the service). Whatever else a request claims is ignored.

What would surprise you: a user's wrong id answers Forbidden whether or not that user exists, because ownership is
checked before anything is read.
"""

import hashlib
import ipaddress
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, cast
from uuid import UUID

from joserfc.errors import JoseError

from shared.clock import Clock
from shared.errors import Forbidden, Unauthenticated
from shared.settings import SharedSettings
from shared.signing import SigningKeys, secrets_of

HEADER: Final = "x-openbell-identity"
LIFETIME_S: Final = 60
SKEW_S: Final = 5
MIN_SECRET_LENGTH: Final = 32
DEVELOPMENT_MARK: Final = "development-only"

_ISSUER: Final = "openbell-gateway"
_CACHED: Final = 4096

Role = Literal["user", "admin"]

REQUEST_ID: ContextVar[str | None] = ContextVar("openbell_request_id", default=None)
"""The HTTP request that is being worked on, for logs and for the requests made on its behalf."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A caller that somebody we trust has authenticated."""

    user_id: UUID
    role: Role

    @property
    def is_admin(self) -> bool:
        """Whether the caller may act for everybody."""
        return self.role == "admin"


class UnsafeSecret(RuntimeError):
    """A process that others can reach must not start with a secret that anybody can read in the source or guess."""


def own(identity: Identity, user_id: UUID) -> None:
    """Raise Forbidden unless `user_id` is the caller's own or the caller is an admin."""
    if identity.user_id != user_id and not identity.is_admin:
        raise Forbidden("this belongs to another user")


def safe_secret(name: str, value: str, settings: SharedSettings) -> str:
    """Return the secret of the setting `name`.

    Raises UnsafeSecret when it is a development value or short, in production or where HTTP listens beyond loopback.
    """
    if not value.startswith(DEVELOPMENT_MARK) and len(value) >= MIN_SECRET_LENGTH:
        return value
    if settings.environment == "production":
        why = "OPENBELL_ENVIRONMENT is production"
    elif not is_loopback(settings.http_host):
        why = f"OPENBELL_HTTP_HOST is {settings.http_host!r}, where other machines may call"
    else:
        return value
    raise UnsafeSecret(f"set {name} to a secret of your own of at least {MIN_SECRET_LENGTH} characters: {why}")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only. Names other than localhost are not."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def identity_secret(settings: SharedSettings) -> str:
    """Return the secrets that gateway and services share, the one that signs first, as the setting has them.

    Raises UnsafeSecret when one of them is unsafe.
    """
    value = settings.identity_secret.get_secret_value()
    for secret in secrets_of(value) or [""]:
        safe_secret("OPENBELL_IDENTITY_SECRET", secret, settings)
    return value


class Signer:
    """The gateway's side: one token for each request forwarded."""

    def __init__(self, secret: str, clock: Clock) -> None:
        self._keys = SigningKeys(secret)
        self._clock = clock

    def sign(self, identity: Identity, *, audience: str, request_id: str) -> str:
        """Return the token that tells `audience` who makes the request `request_id`."""
        issued = int(self._clock().timestamp())
        claims = {
            "iss": _ISSUER,
            "aud": audience,
            "sub": str(identity.user_id),
            "role": identity.role,
            "jti": request_id,
            "iat": issued,
            "exp": issued + LIFETIME_S,
        }
        return self._keys.sign(claims)


class Verifier:
    """A service's side. A token that was good is remembered by its hash until it expires."""

    def __init__(self, secret: str, audience: str, clock: Clock) -> None:
        self._keys = SigningKeys(secret)
        self._audience = audience
        self._clock = clock
        self._known: dict[bytes, tuple[Identity, float]] = {}

    def verify(self, token: str) -> Identity:
        """Return who calls; raises Unauthenticated for anything but a fresh token of the gateway for this service."""
        digest = hashlib.sha256(token.encode()).digest()
        now = self._clock()
        known = self._known.get(digest)
        if known is not None and now.timestamp() < known[1]:
            return known[0]
        identity, until = self._read(token, now)
        if len(self._known) >= _CACHED:
            self._known.clear()
        self._known[digest] = (identity, until)
        return identity

    def _read(self, token: str, now: datetime) -> tuple[Identity, float]:
        refused = Unauthenticated("the identity of this request is not one the gateway signed for this service")
        try:
            claims: Mapping[str, Any] = self._keys.claims(token)
        except (JoseError, ValueError) as error:
            raise refused from error
        issued, expires = claims.get("iat"), claims.get("exp")
        seconds = now.timestamp()
        if (
            claims.get("iss") != _ISSUER
            or claims.get("aud") != self._audience
            or claims.get("role") not in {"user", "admin"}
            or not isinstance(issued, int)
            or not isinstance(expires, int)
            or not issued - SKEW_S <= seconds < expires + SKEW_S
            or expires - issued > LIFETIME_S
        ):
            raise refused
        try:
            user_id = UUID(str(claims.get("sub")))
        except ValueError as error:
            raise refused from error
        return Identity(user_id, cast("Role", claims["role"])), float(expires)
