"""Who sent a callback, and which order it names.

Signatures are those of Standard Webhooks (standardwebhooks.com):

    webhook-id          the venue's id of the event; may be left out
    webhook-timestamp   Unix seconds
    webhook-signature   one or more "v1,<base64>", separated by spaces

each the HMAC-SHA256 of "<id>.<timestamp>.<body>" (without an id "<timestamp>.<body>"). A secret that begins with
`whsec_` is base64; any other is taken as it is written.

Nothing else is read out of a callback: it is a hint, and the venue is then asked.
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, cast
from uuid import UUID

from shared.errors import Unauthenticated

TOLERANCE_S: Final = 300

_OURS: Final = ("client_order_id", "client-order-id", "clientOrderId", "external-identifier", "external_identifier")
_THEIRS: Final = ("venue_order_id", "order_id", "order-id", "orderId")
_INSIDE: Final = ("data", "order")
_ID: Final = re.compile(r"[\x21-\x7e]{1,200}")
_SECONDS: Final = re.compile(r"[0-9]{1,12}")


class BadSignature(Unauthenticated):
    """The signature is missing, or not one of this venue's."""

    code = "BAD_SIGNATURE"


class SignatureExpired(Unauthenticated):
    """This was signed more than five minutes ago, or in the future."""

    code = "SIGNATURE_EXPIRED"


@dataclass(frozen=True, slots=True)
class Signature:
    """What the headers say; None where one is missing."""

    event_id: str | None
    timestamp: str | None
    signatures: str | None


@dataclass(frozen=True, slots=True)
class Hint:
    """A callback that the venue signed. The order ids are None where it names none."""

    event_id: str
    signed_at: datetime
    order_id: UUID | None
    venue_order_id: str | None

    @property
    def names_order(self) -> bool:
        """Whether it says which order."""
        return self.order_id is not None or self.venue_order_id is not None


def secret_key(secret: str) -> bytes:
    """Return the bytes of a secret. Raises ValueError, which does not show it."""
    try:
        key = base64.b64decode(secret[6:], validate=True) if secret.startswith("whsec_") else secret.encode()
    except (binascii.Error, ValueError):
        raise ValueError("a secret that begins with whsec_ goes on in base64") from None
    if not key:
        raise ValueError("a secret must not be empty")
    return key


def read(body: bytes, signature: Signature, keys: Sequence[bytes], now: datetime) -> Hint:
    """Return what a callback hints at. Raises BadSignature, SignatureExpired."""
    timestamp, event_id = signature.timestamp, signature.event_id
    if timestamp is None or not _SECONDS.fullmatch(timestamp) or signature.signatures is None:
        raise BadSignature
    if event_id is not None and not _ID.fullmatch(event_id):
        raise BadSignature
    about = timestamp if event_id is None else f"{event_id}.{timestamp}"
    if not _signed(about.encode() + b"." + body, signature.signatures, keys):
        raise BadSignature
    if abs(now.timestamp() - int(timestamp)) > TOLERANCE_S:
        raise SignatureExpired
    # Without an id the time counts as well: two equal hints at different times are two hints.
    known_by = event_id or "sha256:" + hashlib.sha256(about.encode() + b"." + body).hexdigest()
    order_id, venue_order_id = _order_in(body)
    return Hint(known_by, datetime.fromtimestamp(int(timestamp), UTC), order_id, venue_order_id)


def _signed(content: bytes, signatures: str, keys: Sequence[bytes]) -> bool:
    given = [part[3:].encode() for part in signatures.split(" ") if part.startswith("v1,")]
    wanted = [base64.b64encode(hmac.digest(key, content, "sha256")) for key in keys]
    # All are compared, so that the time taken does not tell which secret it was.
    return any([hmac.compare_digest(one, other) for one in given for other in wanted])  # noqa: C419 - see above


def _order_in(body: bytes) -> tuple[UUID | None, str | None]:
    ours: UUID | None = None
    theirs: str | None = None
    for place in _places(body):
        ours = ours or next((one for name in _OURS if (one := _uuid(place.get(name))) is not None), None)
        theirs = theirs or next((word for name in _THEIRS if (word := _text(place.get(name))) is not None), None)
    return ours, theirs


def _places(body: bytes) -> Iterator[Mapping[str, Any]]:
    """Yield the object, and those inside it that may be the order, an order's own `id` as its order_id."""
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return
    if not isinstance(whole, dict):
        return
    place = cast("dict[str, Any]", whole)
    yield place
    for _ in _INSIDE:
        name = next((name for name in _INSIDE if isinstance(place.get(name), dict)), None)
        if name is None:
            return
        place = cast("dict[str, Any]", place[name])
        yield place if name != "order" or "order_id" in place else {**place, "order_id": place.get("id")}


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _text(value: object) -> str | None:
    word = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return word if isinstance(word, str) and _ID.fullmatch(word) else None
