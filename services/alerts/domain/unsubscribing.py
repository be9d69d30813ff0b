"""Signed links that end mail: in every mail, and in the headers that mail programs press by themselves (RFC 8058).

A link names the template of its mail; what it switches off are the kinds that users choose about in their preferences.

What would surprise you: a link works without logging in and for long, because mail is read late and elsewhere. So it
can do one thing only: end mails to the address that it came to, of its own kind or all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from joserfc.errors import JoseError

from services.alerts.domain.links import LinkRefused
from services.alerts.domain.routing import ACTIVITY, DIGESTS
from shared.signing import SigningKeys

LIFETIME: Final = timedelta(days=90)
UNSUBSCRIBED: Final = "unsubscribed by the link in a mail: set the channel again to get mail"

_AUDIENCE: Final = "alerts/unsubscribe"

_KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "alert": (ACTIVITY,),
    "digest": tuple(sorted(DIGESTS)),
    "test": (),
    "message": (),
}
_NAMES: Final = {"alert": "unusual activity", "digest": "digests", "rule": "what your own rules ask for"}


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """What a link stands for: mails of this kind (Message.kind) to this user at the address of this lane."""

    user_id: UUID
    lane: str
    kind: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of preferences that it switches off; none for what no preference is about: then all mail ends."""
        return _KINDS.get(self.kind, (self.kind,))

    @property
    def name(self) -> str:
        """What its reader calls them."""
        return _NAMES.get(self.kind, self.kind.replace("_", " "))


class UnsubscribeLinks:
    """Makes and reads links, with a key that is derived from a secret for nothing but this."""

    def __init__(self, secret: str, public_url: str) -> None:
        self._keys = SigningKeys(secret, _AUDIENCE)
        self._base = f"{public_url.rstrip('/')}/links/unsubscribe?token="

    def link(self, about: Unsubscribe, now: datetime) -> str:
        """Return the address that a mail carries, good for `LIFETIME`."""
        expires = int((now + LIFETIME).timestamp())
        claims = {"aud": _AUDIENCE, "sub": str(about.user_id), "lane": about.lane, "kind": about.kind, "exp": expires}
        return self._base + self._keys.sign(claims)

    def read(self, token: str, now: datetime) -> Unsubscribe:
        """Return what a token stands for; raises LinkRefused for one that is not ours or too old."""
        try:
            claims: Mapping[str, Any] = self._keys.claims(token)
            about = Unsubscribe(UUID(str(claims["sub"])), str(claims["lane"]), str(claims["kind"]))
            expires = float(claims["exp"])
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise LinkRefused from error
        if claims.get("aud") != _AUDIENCE or now.timestamp() >= expires:
            raise LinkRefused
        return about
