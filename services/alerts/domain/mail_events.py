"""What providers of mail tell of mails that they took, and whether it is them who tell it. Pure.

SendGrid signs `timestamp + body` by ECDSA over SHA-256 with a key of which we hold the public half, and may repeat an
event for a day. Resend signs "<id>.<timestamp>.<body>" by HMAC (Svix) with each attempt. An event has an id, so one
that comes again is known.

What would surprise you: what a provider drops because it suppresses the address counts as what it is suppressed for,
since no mail will arrive there through it; what it drops for our fault (a quota, content) as blocked.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast
from uuid import UUID

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from shared.errors import Invalid, Unauthenticated

Kind = Literal["delivered", "deferred", "bounced", "blocked", "complained", "unsubscribed", "opened", "clicked"]
Provider = Literal["sendgrid", "resend"]

TOLERANCE_S: Final = {"sendgrid": 25 * 3_600, "resend": 300}
DETAIL_MAX: Final = 200
ENDS: Final[Mapping[str, str]] = {
    "bounced": "mail to this address does not arrive: it bounced",
    "complained": "a reader of this address reported our mail as spam",
    "unsubscribed": "the reader of this address unsubscribed at the provider of our mail",
}
"""Kinds after which nothing more goes to an address, and what its user is told."""
_NOT_DELIVERED: Final = "the provider of our mail could not deliver it"

_SENDGRID: Final[Mapping[str, Kind]] = {
    "delivered": "delivered",
    "deferred": "deferred",
    "bounce": "bounced",
    "dropped": "blocked",
    "spamreport": "complained",
    "unsubscribe": "unsubscribed",
    "group_unsubscribe": "unsubscribed",
    "open": "opened",
    "click": "clicked",
}
_DROPPED: Final[Mapping[str, Kind]] = {
    "bounced address": "bounced",
    "invalid": "bounced",
    "spam reporting address": "complained",
    "unsubscribed address": "unsubscribed",
}
"""Why SendGrid drops a mail, where that is about its address; all else (a quota, spam content) is about us."""
_LOST: Final = frozenset({"bounce", "dropped", "email.bounced", "email.suppressed", "email.failed"})
"""Events of mails that do not arrive, whatever that says of their addresses."""
_RESEND: Final[Mapping[str, Kind]] = {
    "email.delivered": "delivered",
    "email.delivery_delayed": "deferred",
    "email.bounced": "bounced",
    "email.suppressed": "bounced",
    "email.failed": "blocked",
    "email.complained": "complained",
    "email.opened": "opened",
    "email.clicked": "clicked",
}
_SECONDS: Final = re.compile(r"[0-9]{1,12}")


class BadSignature(Unauthenticated):
    """The signature is missing, or not this provider's."""

    code = "BAD_SIGNATURE"


class SignatureExpired(Unauthenticated):
    """This was signed too long ago, or in the future."""

    code = "SIGNATURE_EXPIRED"


class AddressSuppressed(Invalid):
    """Mail to this address bounced, or its reader does not want any; an administrator can lift this."""

    code = "ADDRESS_SUPPRESSED"


class BadMailEvent(Invalid):
    """This is signed, but no event of mail."""

    code = "BAD_MAIL_EVENT"


@dataclass(frozen=True, slots=True)
class MailEvent:
    """What became of one mail; one that is `lost` does not arrive. `delivery_id` is None where it was not ours."""

    provider: Provider
    event_id: str
    kind: Kind
    address: str
    delivery_id: UUID | None
    detail: str
    at: datetime
    lost: bool


def why_lost(kind: str, detail: str) -> str:
    """Return what is said of a delivery whose mail did not arrive."""
    return f"{ENDS.get(kind, _NOT_DELIVERED)}: {detail}".removesuffix(": ")


def address_hash(address: str) -> str:
    """Return what is kept of an address that gets no mail any more."""
    return hashlib.sha256(address.strip().lower().encode()).hexdigest()


def public_key(text: str) -> EllipticCurvePublicKey:
    """Return SendGrid's verification key, base64 as it shows it. Raises ValueError."""
    try:
        key = load_der_public_key(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("SendGrid's verification key is base64 of a public key") from None
    if not isinstance(key, EllipticCurvePublicKey):
        raise ValueError("SendGrid's verification key is one of an elliptic curve")  # noqa: TRY004 - it is a setting
    return key


def secret_key(text: str) -> bytes:
    """Return the bytes of a secret of Svix. Raises ValueError, which does not show it."""
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("Resend's signing secret is base64 after whsec_") from None
    if not key:
        raise ValueError("Resend's signing secret is empty")
    return key


def check_sendgrid(
    body: bytes, signature: str | None, timestamp: str | None, key: EllipticCurvePublicKey, now: datetime
) -> None:
    """Raise BadSignature or SignatureExpired unless SendGrid sent this."""
    if signature is None or timestamp is None or not _SECONDS.fullmatch(timestamp):
        raise BadSignature
    try:
        key.verify(base64.b64decode(signature, validate=True), timestamp.encode() + body, ECDSA(SHA256()))
    except (InvalidSignature, binascii.Error, ValueError) as error:
        raise BadSignature from error
    _check_age("sendgrid", timestamp, now)


def check_resend(
    body: bytes,
    event_id: str | None,
    timestamp: str | None,
    signatures: str | None,
    *,
    keys: Collection[bytes],
    now: datetime,
) -> None:
    """Raise BadSignature or SignatureExpired unless Resend sent this and signed it with one of its keys."""
    if event_id is None or timestamp is None or signatures is None or not _SECONDS.fullmatch(timestamp):
        raise BadSignature
    signed = f"{event_id}.{timestamp}.".encode() + body
    wanted = [base64.b64encode(hmac.digest(key, signed, "sha256")) for key in keys]
    given = [part[3:].encode() for part in signatures.split(" ") if part.startswith("v1,")]
    if not any(hmac.compare_digest(one, ours) for one in given for ours in wanted):
        raise BadSignature
    _check_age("resend", timestamp, now)


def of_sendgrid(body: bytes) -> list[MailEvent]:
    """Return the events of a webhook of SendGrid's, without those that say nothing new. Raises BadMailEvent."""
    try:
        events: Any = json.loads(body)
        return [_of_sendgrid(one) for one in events if one["event"] in _SENDGRID]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadMailEvent from error


def of_resend(body: bytes, event_id: str) -> list[MailEvent]:
    """Return the event of a webhook of Resend's; none that says nothing new. Raises BadMailEvent."""
    try:
        event: Any = json.loads(body)
        if event["type"] not in _RESEND:
            return []
        kind, data = _RESEND[event["type"]], event["data"]
        bounce: Mapping[str, Any] = data.get("bounce") or {}
        if event["type"] == "email.bounced" and bounce.get("type", "Permanent") != "Permanent":
            kind = "blocked"
        at = datetime.fromisoformat(event["created_at"]).astimezone(UTC)
        detail = _detail(bounce.get("message") or bounce.get("subType") or "")
        address, delivery_id = str(data["to"][0]), _delivery(_tag(data))
        return [MailEvent("resend", event_id, kind, address, delivery_id, detail, at, event["type"] in _LOST)]
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadMailEvent from error


def _of_sendgrid(one: Mapping[str, Any]) -> MailEvent:
    kind: Kind = _SENDGRID[one["event"]]
    if one["event"] == "bounce" and one.get("type") == "blocked":
        kind = "blocked"
    elif one["event"] == "dropped":
        kind = _DROPPED.get(str(one.get("reason")).strip().lower(), "blocked")
    return MailEvent(
        provider="sendgrid",
        event_id=str(one["sg_event_id"])[:200],
        kind=kind,
        address=str(one["email"]),
        delivery_id=_delivery(one.get("delivery_id")),
        detail=_detail(one.get("reason") or one.get("response") or ""),
        at=datetime.fromtimestamp(int(one["timestamp"]), UTC),
        lost=one["event"] in _LOST,
    )


def _tag(data: Mapping[str, Any]) -> object:
    tags = data.get("tags") or {}
    if isinstance(tags, dict):
        return cast("dict[str, Any]", tags).get("delivery_id")
    pairs = cast("Sequence[Mapping[str, Any]]", tags)
    return next((tag.get("value") for tag in pairs if tag.get("name") == "delivery_id"), None)


def _delivery(value: object) -> UUID | None:
    try:
        return UUID(str(value))
    except ValueError:
        return None


def _detail(value: object) -> str:
    return "".join(one if one.isprintable() else " " for one in str(value))[:DETAIL_MAX]


def _check_age(provider: Provider, timestamp: str, now: datetime) -> None:
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE_S[provider]:
        raise SignatureExpired
