"""Alpaca's REST API: one request at a time, and how each may end.

    401, and 403 without a code     VenueRefused: the keys, or the account
    429                             Busy, for as long as the answer's headers say
    other 4xx                       Declined, with the venue's own reason: what that means the caller knows
    5xx, no answer, no JSON         a read: Transient; a write: OutcomeUnknown
    no connection                   Transient, for nothing was sent
    stopped by the guard            Transient or Busy, for the same reason

What would surprise you: Alpaca says 403 for keys that it does not know and for orders that it does not want. Only the
latter come with a code. Nothing of a request, and no header, is ever put into an error.
"""

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

import httpx

from services.broker.adapters.guard import Guard, Pace
from services.broker.ports import VenueRefused
from shared.clock import Clock
from shared.errors import Transient
from shared.external import Client
from shared.work import Busy, OutcomeUnknown

Method = Literal["GET", "POST", "PATCH", "DELETE"]
Json = Any

WAIT_S: Final = 60.0
"""How long to wait when a refusal for too many requests does not say: Alpaca counts by the minute."""
PER_S: Final = 140 / 60
BURST: Final = 60
"""Alpaca takes 200 requests a minute of an account: whatever was saved up, no minute has more."""

_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_UNAUTHENTICATED: Final = 401
_FORBIDDEN: Final = 403
_TOO_SLOW: Final = 408
_WAIT: Final = 429
_REASON: Final = 300


class Declined(VenueRefused):
    """Alpaca declines a request. `status` is HTTP's, `reason` Alpaca's own words, `number` its own code."""

    def __init__(self, status: int, reason: str, number: int | None) -> None:
        super().__init__(f"Alpaca answered {status}: {reason}")
        self.answered = status
        self.reason = reason
        self.number = number


class Wire:
    """Pooled connections to one address with one account's keys."""

    def __init__(
        self, base: str, key_id: str, secret_key: str, *, timeout_s: float, clock: Clock, guard: Guard
    ) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write a line for each request
        self._base = base.rstrip("/")
        self._keys = {"APCA-API-KEY-ID": key_id, "APCA-API-SECRET-KEY": secret_key}
        self._timeout_s = timeout_s
        self._clock = clock
        self._guard = guard
        self._pace = Pace(per_s=PER_S, burst=BURST)
        self._http: httpx.AsyncClient | None = None

    async def read(self, path: str, params: Mapping[str, str] | None = None) -> Json:
        """GET. Raises Transient, Busy, VenueRefused, Declined."""
        async with self._guard.request(self._pace):
            return await self._request("GET", path, params=params)

    async def write(self, method: Method, path: str, body: Mapping[str, Json] | None = None) -> Json:
        """Do it once. Raises OutcomeUnknown where it may have been done, and what a read raises where it was not."""
        async with self._guard.request(self._pace):
            return await self._request(method, path, body=body)

    async def close(self) -> None:
        """Give up the connections; another request opens new ones."""
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    async def _request(
        self,
        method: Method,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Json] | None = None,
    ) -> Json:
        unclear = Transient if method == "GET" else OutcomeUnknown
        if self._http is None:
            self._http = Client("alpaca", base_url=self._base, headers=self._keys, timeout=self._timeout_s)
        try:
            answer = await self._http.request(method, path, params=params, json=body)
        except _NOT_SENT as error:
            raise Transient(f"Alpaca is not reachable: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise unclear(f"Alpaca did not answer: {type(error).__name__}") from None
        if answer.is_success:
            try:
                return json.loads(answer.content, parse_float=Decimal) if answer.content else None
            except ValueError:
                raise unclear("Alpaca's answer is no JSON") from None
        if answer.is_client_error and answer.status_code != _TOO_SLOW:
            raise self._refusal(answer)
        raise unclear(f"Alpaca answered {answer.status_code}")

    def _refusal(self, answer: httpx.Response) -> Exception:
        status = answer.status_code
        reason, number = _said(answer.content)
        for key in self._keys.values():
            reason = reason.replace(key, "***")
        if status == _WAIT:
            return Busy("Alpaca asks to wait", retry_after_s=wait_s(answer.headers, self._clock()))
        if status == _UNAUTHENTICATED or (status == _FORBIDDEN and number is None):
            return VenueRefused(f"Alpaca does not take the account's keys: {status}")
        return Declined(status, reason[:_REASON] or "no reason given", number)


def wait_s(headers: Mapping[str, str], now: datetime) -> float:
    """Return how long to wait, from Retry-After in seconds or X-RateLimit-Reset in Unix time.

    The reset is measured against the answer's own Date where it has one, for the venue's clock is not ours.
    """
    with suppress(ValueError, KeyError):
        return _bounded(float(headers["retry-after"]))
    with suppress(ValueError, TypeError, KeyError):
        now = parsedate_to_datetime(headers["date"])
    with suppress(ValueError, KeyError):
        return _bounded(float(headers["x-ratelimit-reset"]) - now.timestamp())
    return WAIT_S


def _bounded(seconds: float) -> float:
    """Return a wait that is neither nothing nor longer than the window; NaN becomes the shortest."""
    return min(seconds, WAIT_S) if seconds >= 1 else 1.0


def _said(content: bytes) -> tuple[str, int | None]:
    """Return the reason and the code of a refusal; both may be missing."""
    try:
        told = json.loads(content)
    except ValueError:
        return "", None
    if not isinstance(told, dict):
        return "", None
    reason, number = told.get("message"), told.get("code")
    return str(reason or ""), number if isinstance(number, int) else None
