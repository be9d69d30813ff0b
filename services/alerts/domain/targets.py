"""What is stored as the target of a webhook, a browser and the like: checked before it is written.

What would surprise you: a target is one text whatever its channel. That of a webhook holds its signing secrets, that of
a browser is its push subscription (RFC 8030) as `JSON.stringify` gives it.
"""

import base64
import binascii
import re
from datetime import datetime
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from shared.errors import Invalid

SECRETS: Final = 2
"""How many of a webhook's secrets sign: the newest and the one before, so that its receiver can change over."""

_URL: Final = re.compile(r"[\x21-\x7e]{1,2000}", re.ASCII)
_TOKEN: Final = re.compile(r"[A-Za-z0-9_:.-]{20,1000}", re.ASCII)
_APPRISE: Final = re.compile(r"([a-z][a-z0-9]{1,31})://[\x21-\x7e]{1,1900}", re.ASCII)
_POINT_BYTES: Final = 65
_AUTH_BYTES: Final = 16


class Webhook(msgspec.Struct, frozen=True):
    """Where a webhook goes and what signs it, the newest secret first."""

    url: str
    secrets: tuple[str, ...]

    @property
    def text(self) -> str:
        """The target as it is stored."""
        return msgspec.json.encode(self).decode()


class Keys(msgspec.Struct, frozen=True):
    """The keys of a subscription, base64url: its point on P-256 and its secret."""

    p256dh: Annotated[str, msgspec.Meta(max_length=200)]
    auth: Annotated[str, msgspec.Meta(max_length=100)]


class Subscription(msgspec.Struct, frozen=True, rename={"expires_ms": "expirationTime"}):
    """A browser's push subscription; `expires_ms` is Unix time."""

    endpoint: str
    keys: Keys
    expires_ms: float | None = None

    @property
    def text(self) -> str:
        """The target as it is stored."""
        return msgspec.json.encode(self).decode()

    def expired(self, now: datetime) -> bool:
        """Whether its browser has said that it is over."""
        return self.expires_ms is not None and self.expires_ms <= now.timestamp() * 1000.0


def webhook_of(target: str) -> Webhook:
    """Return the webhook that a stored target holds."""
    return msgspec.json.decode(target, type=Webhook)


def subscription_of(target: str) -> Subscription:
    """Return the subscription that a target holds; raises Invalid for a text that holds none."""
    try:
        return msgspec.json.decode(target, type=Subscription)
    except msgspec.MsgspecError as error:
        raise Invalid("this is not a push subscription: send JSON.stringify(subscription)") from error


def checked_url(url: str, extra_base: str | None) -> str:
    """Return a URL that may be called; whether its host leads to a private network is asked where it is resolved.

    Raises Invalid for what is not https (but for the one origin that development allows) or names a user.
    """
    wanted = "a URL like https://example.com/path is needed, in ASCII and without user and fragment"
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise Invalid(wanted) from error
    at_home = extra_base is not None and f"{parts.scheme}://{parts.netloc}" == extra_base.rstrip("/")
    if not (at_home or parts.scheme == "https") or not host or port == 0 or "@" in parts.netloc or "#" in url:
        raise Invalid(wanted)
    if _URL.fullmatch(url) is None or "\\" in url:
        raise Invalid(wanted)
    return url


def checked_subscription(target: str, extra_base: str | None) -> Subscription:
    """Return the subscription that a target holds; raises Invalid for a bad endpoint or malformed keys."""
    subscription = subscription_of(target)
    checked_url(subscription.endpoint, extra_base)
    if len(unpacked(subscription.keys.auth)) != _AUTH_BYTES:
        raise Invalid("the subscription's key `auth` is malformed")
    if not _is_point(unpacked(subscription.keys.p256dh)):
        raise Invalid("the subscription's key `p256dh` is malformed")
    return subscription


def _is_point(packed: bytes) -> bool:
    """Whether these bytes are an uncompressed point on P-256."""
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), packed)
    except ValueError:
        return False
    return len(packed) == _POINT_BYTES


def checked_token(token: str) -> str:
    """Return the registration token of an app; raises Invalid."""
    if _TOKEN.fullmatch(token) is None:
        raise Invalid("this is not a registration token of Firebase Cloud Messaging")
    return token


def checked_apprise(url: str) -> str:
    """Return an Apprise URL that has the form of one; raises Invalid."""
    if _APPRISE.fullmatch(url) is None:
        raise Invalid("an Apprise URL looks like schema://credentials, in ASCII and with a schema in small letters")
    return url


def schema_of(url: str) -> str:
    """Return the schema of an Apprise URL."""
    return url.partition("://")[0]


def unpacked(text: str) -> bytes:
    """Return what base64url text holds, with or without padding; nothing for what is not base64url."""
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return b""
