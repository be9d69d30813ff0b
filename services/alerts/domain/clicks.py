"""Links in messages that lead to the page about an alert or a notice, by way of us, so that a click is counted.

What would surprise you: a link names whom and what it is about and no address. The address is made of our own settings
when it is followed, so a link can lead nowhere else. It never ends, for it opens nothing: the page asks who looks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from joserfc.errors import JoseError

from services.alerts.domain.links import LinkRefused
from shared.signing import SigningKeys

_AUDIENCE: Final = "alerts/click"
_PAGE: Final = re.compile(r"/([A-Za-z0-9_-]+/)*([A-Za-z0-9_-]*|\{id\})")
"""A path of our own, whose last part may be {id}: the alert or the notice."""


@dataclass(frozen=True, slots=True)
class Click:
    """What a link stands for."""

    user_id: UUID
    subject_id: UUID


class Clicks:
    """Makes and reads links. `page` is the path of the page, beneath `public_url`; without one there are no links.

    Raises ValueError for a page that is no path of our own.
    """

    def __init__(self, secret: str, public_url: str, page: str | None) -> None:
        if page is not None and _PAGE.fullmatch(page) is None:
            raise ValueError(f"OPENBELL_ALERTS_OPEN_PAGE is a path such as /app/alerts/{{id}}, not {page}")
        self._keys = SigningKeys(secret, _AUDIENCE)
        self._base = public_url.rstrip("/")
        self._page = page

    def link(self, user_id: UUID, subject_id: UUID) -> str | None:
        """Return the address that a message carries; None where no page is set up."""
        if self._page is None:
            return None
        claims = {"aud": _AUDIENCE, "sub": str(user_id), "id": str(subject_id)}
        return f"{self._base}/links/click?token={self._keys.sign(claims)}"

    def read(self, token: str) -> Click:
        """Return what a token stands for; raises LinkRefused for one that is not ours."""
        try:
            claims: Mapping[str, Any] = self._keys.claims(token)
            click = Click(UUID(str(claims["sub"])), UUID(str(claims["id"])))
        except (JoseError, ValueError, KeyError, TypeError) as error:
            raise LinkRefused from error
        if claims.get("aud") != _AUDIENCE:
            raise LinkRefused
        return click

    def address(self, click: Click) -> str:
        """Return where a click leads: the page, or our front door where none is set up any more."""
        return self._base + (self._page or "/").replace("{id}", str(click.subject_id))
