"""Where Stripe may send people back to: our own origins and no other, or the checkout were an open redirect."""

from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from shared.errors import Invalid

LONGEST: Final = 2_000
_PORTS: Final = {"http": 80, "https": 443}


class ReturnNotAllowed(Invalid):
    """The address to return to is not one of ours."""

    code = "RETURN_NOT_ALLOWED"


class Returns:
    """The origins (https://app.example.org) that may be returned to, and where to go when nobody says.

    Raises ValueError for what is no origin, ReturnNotAllowed for a default that is of none of them.
    """

    def __init__(self, origins: Iterable[str], default: str) -> None:
        listed = tuple(origins)
        found = [origin_of(one) for one in listed]
        for one, origin in zip(listed, found, strict=True):
            if origin is None or urlsplit(one).path not in {"", "/"} or urlsplit(one).query or urlsplit(one).fragment:
                raise ValueError(f"{one!r} is no origin; one reads https://app.example.org")
        self._origins = frozenset(found)
        self._default = self.to(default)

    def to(self, url: str | None) -> str:
        """Return the address, or the default; raises ReturnNotAllowed."""
        if url is None:
            return self._default
        if (origin := origin_of(url)) is None or origin not in self._origins:
            raise ReturnNotAllowed
        return url


def origin_of(url: str) -> tuple[str, str, int] | None:
    """Return (scheme, host, port); None for what browsers and we might read differently."""
    if len(url) > LONGEST or any(not "!" <= char <= "~" or char == "\\" for char in url):
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _PORTS or not url.startswith(f"{parts.scheme}://"):
        return None
    if not parts.hostname or "@" in parts.netloc or "%" in parts.netloc:
        return None
    return parts.scheme, parts.hostname, port or _PORTS[parts.scheme]
