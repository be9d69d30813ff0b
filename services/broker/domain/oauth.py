"""OAuth 2 with a venue: the authorisation-code redirect (RFC 6749), with PKCE (RFC 7636) where the venue takes it."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal, cast
from urllib.parse import quote, urlencode, urlsplit

ACCESS: Final = "access_token"
REFRESH: Final = "refresh_token"
EARLY: Final = timedelta(minutes=2)
LONGEST_S: Final = 10 * 366 * 86_400
LONGEST_TOKEN: Final = 16_384


@dataclass(frozen=True, slots=True)
class OAuthVenue:
    """A venue's OAuth, and what it knows us by. `redirect_url` is the page of ours that hands code and state on."""

    name: str
    client_id: str
    client_secret: str = field(repr=False)
    authorize_url: str
    token_url: str
    redirect_url: str
    scopes: tuple[str, ...] = ()
    pkce: bool = True
    body: Literal["form", "json"] = "form"

    def __post_init__(self) -> None:
        for name in ("authorize_url", "token_url", "redirect_url"):
            url = urlsplit(getattr(self, name))
            if not (url.scheme == "https" or (url.scheme == "http" and url.hostname in {"127.0.0.1", "localhost"})):
                raise ValueError(f"{name} of {self.name} must begin with https://")

    def address(self, state: str, verifier: str) -> str:
        """Return where the user is sent to."""
        asked = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_url,
            "state": state,
        }
        if self.scopes:
            asked["scope"] = " ".join(self.scopes)
        if self.pkce:
            asked |= {"code_challenge": challenge(verifier), "code_challenge_method": "S256"}
        joined = "&" if urlsplit(self.authorize_url).query else "?"
        return f"{self.authorize_url}{joined}{urlencode(asked, quote_via=quote)}"

    def code_grant(self, code: str, verifier: str) -> dict[str, str]:
        """Return what is posted for tokens after the redirect."""
        asked = {"grant_type": "authorization_code", "code": code, "redirect_uri": self.redirect_url}
        return asked | self._client() | ({"code_verifier": verifier} if self.pkce else {})

    def refresh_grant(self, refresh_token: str) -> dict[str, str]:
        """Return what is posted for fresh tokens."""
        return {"grant_type": "refresh_token", "refresh_token": refresh_token} | self._client()

    def _client(self) -> dict[str, str]:
        return {"client_id": self.client_id, "client_secret": self.client_secret}


@dataclass(frozen=True, slots=True)
class Granted:
    """Tokens that a venue gave. Without a refresh token the one before stays."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    lifetime_s: float | None

    def secrets(self, before: Mapping[str, str]) -> dict[str, str]:
        """Return the credentials after this grant; what else an account needs stays."""
        refresh = {} if self.refresh_token is None else {REFRESH: self.refresh_token}
        return {**before, ACCESS: self.access_token, **refresh}

    def good(self, now: datetime) -> tuple[datetime | None, datetime | None]:
        """Return until when the access token is good, and from when on it is refreshed: None without an end."""
        if self.lifetime_s is None:
            return None, None
        lifetime = timedelta(seconds=self.lifetime_s)
        return now + lifetime, now + max(lifetime - EARLY, lifetime * 2 / 3)


def challenge(verifier: str) -> str:
    """Return the S256 challenge of a PKCE verifier."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()


def word_of(random: bytes) -> str:
    """Return random bytes as a word fit for an address: a state, a verifier."""
    return base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def granted_of(answer: Any) -> Granted:
    """Return the tokens of an answer. Raises ValueError, which shows nothing of it, when there are none."""
    if not isinstance(answer, dict):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004 - all that is wrong with an answer is one error
    told = cast("dict[str, Any]", answer)
    refresh, lifetime = told.get(REFRESH), told.get("expires_in")
    access = _token(told.get(ACCESS))
    refresh = None if refresh is None else _token(refresh)
    if isinstance(lifetime, str) and lifetime.isdecimal() and len(lifetime) < 12:  # noqa: PLR2004 - no date is later
        lifetime = int(lifetime)
    if lifetime is None:
        return Granted(access, refresh, None)
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float) or not 0 < lifetime <= LONGEST_S:
        raise ValueError("the answer's expires_in is no number of seconds")
    return Granted(access, refresh, float(lifetime))


def _token(value: object) -> str:
    if isinstance(value, str) and 0 < len(value) <= LONGEST_TOKEN and value.isascii() and value.isprintable():
        return value
    raise ValueError("a token of the answer is none")
