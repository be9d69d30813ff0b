"""Signed links: whoever opens one has read the mail that it came in.

What would surprise you: a link names the user and the lane of the address (domain/channels.py), not the address, so it
ends with the address and gives nothing away; and opening it again is no error.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from joserfc.errors import JoseError

from shared.errors import Forbidden
from shared.signing import SigningKeys

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
        self._keys = SigningKeys(secret, _AUDIENCE)

    def sign(self, link: Link, now: datetime) -> str:
        """Return the token, good for `LIFETIME`."""
        expires = int((now + LIFETIME).timestamp())
        claims = {"aud": _AUDIENCE, "sub": str(link.user_id), "lane": link.lane, "exp": expires}
        return self._keys.sign(claims)

    def read(self, token: str, now: datetime) -> Link:
        """Return what the token stands for; raises LinkRefused for one that is not ours or too old."""
        try:
            claims: Mapping[str, Any] = self._keys.claims(token)
            link = Link(UUID(str(claims["sub"])), str(claims["lane"]))
            expires = float(claims["exp"])
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise LinkRefused from error
        if claims.get("aud") != _AUDIENCE or now.timestamp() >= expires:
            raise LinkRefused
        return link
