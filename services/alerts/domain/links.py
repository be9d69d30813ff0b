"""Signed links: whoever opens one has read the mail that it came in.

What would surprise you: a link names the user and the lane of the address (domain/channels.py), not the address, so it
ends with the address and gives nothing away; and opening it again is no error.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey

from shared.errors import Forbidden

LIFETIME: Final = timedelta(hours=24)

_AUDIENCE: Final = "alerts/confirm-email"


class LinkRefused(Forbidden):
    """This link is not valid any more: ask for a new one."""

    code = "LINK_REFUSED"


@dataclass(frozen=True, slots=True)
class Link:
    """What a link stands for: this user reads mail at the address of this lane."""

    user_id: UUID
    lane: str


class Links:
    """Signs and reads links with a key that is derived from a secret for nothing but this."""

    def __init__(self, secret: str) -> None:
        self._key = OctKey.import_key(hmac.digest(secret.encode(), _AUDIENCE.encode(), hashlib.sha256))

    def sign(self, link: Link, now: datetime) -> str:
        """Return the token, good for `LIFETIME`."""
        expires = int((now + LIFETIME).timestamp())
        claims = {"aud": _AUDIENCE, "sub": str(link.user_id), "lane": link.lane, "exp": expires}
        return jwt.encode({"alg": "HS256"}, claims, self._key)

    def read(self, token: str, now: datetime) -> Link:
        """Return what the token stands for; raises LinkRefused for one that is not ours or too old."""
        try:
            claims: Mapping[str, Any] = jwt.decode(token, self._key, algorithms=["HS256"]).claims
            link = Link(UUID(str(claims["sub"])), str(claims["lane"]))
            expires = float(claims["exp"])
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise LinkRefused from error
        if claims.get("aud") != _AUDIENCE or now.timestamp() >= expires:
            raise LinkRefused
        return link
