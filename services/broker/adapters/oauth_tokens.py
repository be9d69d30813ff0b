"""Token endpoints of OAuth venues, over HTTP.

What would surprise you: no error here has a cause and none repeats what the venue said, for grants and answers are
nothing but secrets.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

import httpx

from services.broker.domain.oauth import Granted, OAuthVenue, granted_of
from services.broker.ports import GrantRefused
from shared.errors import Transient
from shared.external import Client
from shared.work import Busy, OutcomeUnknown

TIMEOUT_S: Final = 10.0

_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_WAIT: Final = 429
_THEIR_FAULT: Final = 500
_REFUSED: Final = frozenset({"invalid_grant", "access_denied"})


class HttpTokens:
    """Posts grants."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)
        self._timeout_s = timeout_s
        self._http: httpx.AsyncClient | None = None

    async def ask(self, venue: OAuthVenue, grant: Mapping[str, str]) -> Granted:
        """Post a grant; see services.broker.ports for how it may end."""
        if self._http is None:
            self._http = Client(
                "oauth", timeout=self._timeout_s, headers={"user-agent": "Openbell/1", "accept": "application/json"}
            )
        posted: dict[str, Any] = {"json" if venue.body == "json" else "data": dict(grant)}
        try:
            answer = await self._http.post(venue.token_url, **posted)
        except _NOT_SENT as error:
            raise Transient(f"{venue.name} is not reachable: {type(error).__name__}") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OutcomeUnknown(f"{venue.name} did not answer: {type(error).__name__}") from None
        if not answer.is_success:
            raise _refusal(venue, answer)
        try:
            return granted_of(answer.json())
        except (ValueError, RecursionError):
            raise OutcomeUnknown(f"{venue.name} answered {answer.status_code} without tokens") from None

    async def close(self) -> None:
        """Close the connections; another question opens new ones."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()


def _refusal(venue: OAuthVenue, answer: httpx.Response) -> Exception:
    status = answer.status_code
    if status == _WAIT:
        return Busy(f"{venue.name} asks to wait", retry_after_s=_wait_s(answer))
    if status >= _THEIR_FAULT:
        return OutcomeUnknown(f"{venue.name} answered {status}")
    if _code(answer) in _REFUSED:
        return GrantRefused()
    return Transient(f"{venue.name} refuses us as a client: {status}", retry_after_s=30)


def _wait_s(answer: httpx.Response) -> float:
    told = answer.headers.get("retry-after", "")
    return float(min(int(told), 3600)) if told.isdecimal() and len(told) < 6 else 5.0  # noqa: PLR2004 - seconds


def _code(answer: httpx.Response) -> str | None:
    """Return the error's code: `error` (RFC 6749), or within it `code`."""
    try:
        told: Any = answer.json()
        error = told["error"]
        return error["code"] if isinstance(error, dict) else str(error)  # pyright: ignore[reportUnknownVariableType] - their JSON
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
