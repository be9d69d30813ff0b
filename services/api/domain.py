"""Pure rules of the gateway: symbols, e-mail addresses, the form of an API key, and what one caller's address is."""

import base64
import hashlib
import hmac
import ipaddress
import re
from dataclasses import dataclass
from functools import cache
from typing import Final
from uuid import UUID
from zoneinfo import available_timezones

from shared.contracts.symbols import SYMBOL
from shared.errors import Invalid

MAX_WATCHED: Final = 500

_KEY: Final = re.compile(r"ob_(?P<id>[0-9a-f]{32})_(?P<secret>[A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class KeyParts:
    """An API key taken apart."""

    id: UUID
    secret: str

    @property
    def digest(self) -> bytes:
        """What is stored of the secret. It has 256 bits of entropy, so a slow hash would add nothing."""
        return hashlib.sha256(self.secret.encode()).digest()


def symbol(raw: str) -> str:
    """Return the symbol in upper case: `AAPL`, `BRK.B`, `_SPX`. Raises Invalid."""
    upper = raw.strip(" ").upper()
    if not raw.isascii() or SYMBOL.fullmatch(upper) is None:
        raise Invalid("this is not a symbol", problems=[{"path": "symbol", "message": "not a symbol, such as BRK.B"}])
    return upper


@cache
def timezones() -> frozenset[str]:
    """Return the names of all time zones known here."""
    return frozenset(available_timezones())


def normal_email(address: str) -> str:
    """Return the form under which an address is unique. Case is ignored; providers' own rules are not guessed."""
    return address.strip().lower()


def derive_secret(server_secret: str, key_id: UUID) -> str:
    """Return the secret of a key: HMAC-SHA256 of its id under the server's secret, 43 characters.

    Being derived, it can be shown again to the repetition of a request whose answer was lost, without being stored.
    """
    mac = hmac.digest(server_secret.encode(), b"openbell/api-key/v1:" + key_id.bytes, "sha256")
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def format_key(key_id: UUID, secret: str) -> str:
    """Return the key as people hold it."""
    return f"ob_{key_id.hex}_{secret}"


def parse_key(text: str) -> KeyParts | None:
    """Take a key apart; None when it is not one."""
    match = _KEY.fullmatch(text)
    return KeyParts(UUID(match["id"]), match["secret"]) if match else None


def same_digest(one: bytes, other: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one, other)


def caller_address(peer: str | None, forwarded_for: str | None, trusted_proxies: int) -> str:
    """Return the address to limit by: an IPv4 address, or the /64 that one IPv6 customer has.

    With `trusted_proxies` = n, the n-th X-Forwarded-For entry from the right is the first that a stranger
    could not have written.
    """
    address = peer or "unknown"
    if trusted_proxies and forwarded_for:
        hops = [hop.strip() for hop in forwarded_for.split(",")]
        address = hops[-min(trusted_proxies, len(hops))]
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
    return str(parsed)
