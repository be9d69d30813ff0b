"""Web Push (RFC 8030) to browsers: encrypted for the subscription (RFC 8291), signed by VAPID (RFC 8292).

The `Topic` is made of the delivery's id, so a push service that still holds the message replaces it by its repeat, and
the payload's `tag` is the id, so a browser that gets both shows one: an unknown outcome is sent again.

What would surprise you: the push service sees neither text nor title. A payload has 3,993 bytes at most (4,096 when it
is encrypted); lines are left out from the end until it fits.
"""

import base64
import json
import os
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

import http_ece
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc import jwt
from joserfc.jwk import ECKey

from services.alerts.domain.targets import subscription_of, unpacked
from services.alerts.domain.text import Message
from services.alerts.ports import ChannelGone, Sent
from services.alerts.templates import rendered
from shared.clock import Clock, utc_now
from shared.errors import Permanent, Transient
from shared.external import calling
from shared.outward import Answer, Outward
from shared.work import Busy

PAYLOAD_MAX: Final = 3_993
"""4,096 bytes, less 86 of the header of aes128gcm, 16 of the tag and 1 that ends the padding."""
TTL_S: Final = 6 * 3600
"""How long a push service keeps a message for a browser that is away: as long as a delivery is tried."""

_LIFETIME_S: Final = 12 * 3600
_KEY_BYTES: Final = 32
_OK: Final = frozenset({200, 201, 202, 204})
_GONE: Final = frozenset({404, 410})
_TOO_LARGE: Final = 413
_WAIT: Final = 429
_THEIR_FAULT: Final = 500


class Vapid:
    """The key that says who pushes, and whom to ask about it (a mailto: or https: URL)."""

    def __init__(self, private_key: str, subject: str) -> None:
        raw = unpacked(private_key)
        number = int.from_bytes(raw, "big")
        if len(raw) != _KEY_BYTES or number == 0:
            raise ValueError("a VAPID key is 32 bytes in base64url (docs/channels.md says how to make one)")
        point = ec.derive_private_key(number, ec.SECP256R1()).public_key()
        packed = point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        self.public_key = _packed(packed)
        """What browsers subscribe with (applicationServerKey)."""
        self._key = ECKey.import_key(
            {"kty": "EC", "crv": "P-256", "d": _packed(raw), "x": _packed(packed[1:33]), "y": _packed(packed[33:])}
        )
        self._subject = subject

    def authorization(self, endpoint: str, now_s: float) -> str:
        """Return the header for one push service: the audience is the origin of its endpoint."""
        parts = urlsplit(endpoint)
        claims = {"aud": f"{parts.scheme}://{parts.netloc}", "exp": int(now_s) + _LIFETIME_S, "sub": self._subject}
        return f"vapid t={jwt.encode({'alg': 'ES256', 'typ': 'JWT'}, claims, self._key)}, k={self.public_key}"


class WebPush:
    """Pushes messages to the endpoints of subscriptions."""

    def __init__(self, vapid: Vapid, outward: Outward, clock: Clock = utc_now) -> None:
        self._vapid = vapid
        self._outward = outward
        self._clock = clock

    async def send(self, message: Message) -> Sent:
        """Push the message; see services.alerts.ports for how it may end."""
        now, subscription = self._clock(), subscription_of(message.target)
        if subscription.expired(now):
            raise ChannelGone("the push subscription has expired")
        headers = {
            "authorization": self._vapid.authorization(subscription.endpoint, now.timestamp()),
            "content-encoding": "aes128gcm",
            "content-type": "application/octet-stream",
            "ttl": str(TTL_S),
            "topic": topic(message.delivery_id),
            "urgency": "high",
        }
        body = encrypted(payload(message), unpacked(subscription.keys.p256dh), unpacked(subscription.keys.auth))
        with calling("webpush") as call:
            answer = await self._outward.post(subscription.endpoint, headers, body)
            call.status = answer.status
        if answer.status in _OK:
            return Sent("")
        raise _refusal(answer)

    async def check(self, target: str) -> None:
        """Raise Invalid for a subscription whose push service may not be called."""
        await self._outward.check(subscription_of(target).endpoint)

    async def close(self) -> None:
        """Close the connections; another send opens new ones."""
        await self._outward.close()


def payload(message: Message) -> bytes:
    """Return what the browser's service worker gets, cut to PAYLOAD_MAX bytes."""
    shown = rendered("webpush", message)
    lines = shown.text.strip().splitlines()
    whole: dict[str, Any] = {
        "id": str(message.delivery_id),
        "tag": str(message.delivery_id),
        "title": shown.subject,
        "simulated": message.simulated,
        "at": message.at.isoformat(),
        **({"url": message.link} if message.link is not None else {}),
    }
    while len(made := _json({**whole, "body": "\n".join(lines)})) > PAYLOAD_MAX and lines:
        lines = [*lines[:-2], "…"] if len(lines) > 1 else []
    if len(made) <= PAYLOAD_MAX:
        return made
    rest = PAYLOAD_MAX - len(_json({**whole, "title": "…", "body": ""}))
    whole["title"] = cut(shown.subject, rest) + "…"
    return _json({**whole, "body": ""})


def cut(text: str, longest: int) -> str:
    """Return as many characters of a text as JSON writes in so many bytes of UTF-8."""
    size, end = 0, 0
    for character in text:
        size += len(_json(character)) - 2
        if size > longest:
            break
        end += 1
    return text[:end]


def encrypted(content: bytes, point: bytes, secret: bytes) -> bytes:
    """Return a body that only the subscription's browser reads, in one record, under a key of its own."""
    try:
        return http_ece.encrypt(
            content,
            salt=os.urandom(16),
            private_key=ec.generate_private_key(ec.SECP256R1()),
            dh=point,
            auth_secret=secret,
            version="aes128gcm",
        )
    except (http_ece.ECEException, UnsupportedAlgorithm, ValueError) as error:
        raise ChannelGone("the push subscription's keys are malformed") from error


def topic(delivery_id: UUID) -> str:
    """Return an id in the 22 characters of base64url that a Topic may hold 32 of."""
    return _packed(delivery_id.bytes)


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _refusal(answer: Answer) -> Exception:
    status = answer.status
    if status in _GONE:
        return ChannelGone("the push service knows no such subscription any more: subscribe again")
    if status == _WAIT:
        return Busy("the push service asks to wait", retry_after_s=answer.wait_s or 5.0)
    if status >= _THEIR_FAULT:
        return Transient(f"the push service answered {status}", retry_after_s=answer.wait_s)
    if status == _TOO_LARGE:
        return Permanent("the push service takes no message of this size")
    return Permanent(f"the push service refused the message: {status}")
