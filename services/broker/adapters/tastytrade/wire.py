"""tastytrade's HTTP: access tokens of fifteen minutes, requests, and what its errors mean.

What would surprise you: a 401 was certainly not carried out, so that one answer lets even a write be sent once more,
with a new token. Nothing else does.
"""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Generator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import httpx

from services.broker.adapters.guard import Guard, Pace
from services.broker.ports import VenueRefused
from shared.clock import Clock
from shared.errors import Permanent, Transient
from shared.external import Client
from shared.work import Busy, OutcomeUnknown

Json = Mapping[str, Any]

AGENT: Final = "openbell/1.0"
EARLY: Final = timedelta(minutes=1)
"""A token is renewed this long before it ends."""
WAIT_S: Final = 5.0
"""How long to leave the venue alone after a 429, which names no time."""
LONGEST_WAIT_S: Final = 3600.0
"""However long it names: an account whose orders wait is one that nobody can trade on."""
PER_PAGE: Final = 100
PER_S: Final = 10
BURST: Final = 60
"""How often an account asks: the venue names no limit, so this one is ours."""

_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_UNAUTHENTICATED: Final = 401
_FORBIDDEN: Final = 403
_WAIT: Final = 429
_DECLINED: Final = frozenset({400, 404, 409, 422})
_TOKEN_REFUSED: Final = frozenset({400, 401, 403, 422})
_LONGEST_REASON: Final = 500


class Declined(Permanent):
    """The venue understood the request and does not do it."""

    code = "VENUE_DECLINED"

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.answer = status


class Wire:
    """The requests of one account. The client is opened when it is first needed."""

    def __init__(
        self, base: str, refresh_token: str, client_secret: str, *, clock: Clock, timeout_s: float, guard: Guard
    ) -> None:
        for name in ("httpx", "httpcore"):  # they would write addresses with account numbers
            logging.getLogger(name).setLevel(logging.WARNING)
        self._base = base.rstrip("/")
        self._grant = {
            "grant_type": "refresh_token",
            "refresh_token": refresh_token,
            "client_secret": client_secret,
        }
        self._clock = clock
        self._timeout_s = timeout_s
        self._guard = guard
        self._pace = Pace(per_s=PER_S, burst=BURST)
        self._http: httpx.AsyncClient | None = None
        self._token = ""
        self._renew_at: datetime | None = None
        self._renewing: asyncio.Task[str] | None = None

    async def token(self, *, instead_of: str = "") -> str:
        """Return an access token, `instead_of` one that the venue did not take; whoever needs one shares one request.

        Raises VenueRefused when the credentials are not taken, Busy, Transient.
        """
        fresh = self._renew_at is not None and self._clock() < self._renew_at
        if fresh and self._token and self._token != instead_of:
            return self._token
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._renew(), name="tastytrade token")
            self._renewing.add_done_callback(self._renewed)
        return await asyncio.shield(self._renewing)

    async def read(self, path: str, params: Json | None = None) -> Json:
        """GET. Raises Declined, VenueRefused, Busy, Transient."""
        async with self._guard.request(self._pace):
            return await self._request("GET", path, params=params)

    async def write(self, method: str, path: str, body: Json | None = None) -> Json:
        """POST, PUT or DELETE, once. Raises what `read` does, and OutcomeUnknown."""
        async with self._guard.request(self._pace):
            return await self._request(method, path, body=body)

    async def items(self, path: str, params: Json | None = None) -> AsyncIterator[Json]:
        """Yield the items of all pages. What is added meanwhile moves others to a later page, so one may come twice."""
        offset = 0
        while True:
            page = {**(params or {}), "page-offset": offset} if offset else params
            answer = await self.read(path, page)
            found: list[Json] = answer["data"]["items"]
            for one in found:
                yield one
            offset += 1
            if not found or offset >= (answer.get("pagination") or {}).get("total-pages", 0):
                return

    async def close(self) -> None:
        """Close the connections; another request opens new ones."""
        client, self._http = self._http, None
        if self._renewing is not None:
            await asyncio.wait([self._renewing])  # others wait for it
        if client is not None:
            await client.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = Client("tastytrade", timeout=self._timeout_s, headers={"user-agent": AGENT})
        return self._http

    async def _renew(self) -> str:
        try:
            answer = await self._client().post(f"{self._base}/oauth/token", json=self._grant)
        except httpx.HTTPError as error:
            raise Transient(f"tastytrade gives no token: {type(error).__name__}") from None
        if answer.status_code in _TOKEN_REFUSED:
            raise VenueRefused(f"tastytrade does not take the credentials ({answer.status_code}): connect it again")
        if answer.status_code == _WAIT:
            raise Busy("tastytrade asks to wait", retry_after_s=_wait_s(answer))
        if not answer.is_success:
            raise Transient(f"tastytrade gives no token: {answer.status_code}")
        try:
            told = answer.json()
            token, seconds = str(told["access_token"]), float(told["expires_in"])
        except (ValueError, KeyError, TypeError):
            raise Transient("tastytrade's answer has no token") from None
        self._token = token
        self._renew_at = self._clock() + max(timedelta(seconds=seconds) - EARLY, timedelta(seconds=seconds / 2))
        return token

    def _renewed(self, task: asyncio.Task[str]) -> None:
        self._renewing = None
        if not task.cancelled():
            task.exception()  # seen, should everybody who waited for it be gone

    async def _request(self, method: str, path: str, params: Json | None = None, body: Json | None = None) -> Json:
        token = await self.token()
        answer = await self._send(method, path, token, params, body)
        if answer.status_code == _UNAUTHENTICATED:
            token = await self.token(instead_of=token)
            answer = await self._send(method, path, token, params, body)
        if not answer.is_success:
            raise _error(answer, writes=method != "GET")
        try:
            told = json.loads(answer.content, parse_float=Decimal)
        except ValueError:
            told = None
        if not isinstance(told, dict) or not isinstance(told.get("data"), dict):
            raise _unclear(f"tastytrade's answer to {method} cannot be read", writes=method != "GET")
        return told

    async def _send(self, method: str, path: str, token: str, params: Json | None, body: Json | None) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}", "accept": "application/json"}
        try:
            return await self._client().request(
                method, self._base + path, params=dict(params) if params else None, json=body, headers=headers
            )
        except _NOT_SENT as error:
            raise Transient(f"tastytrade is not reachable: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise _unclear(f"tastytrade did not answer: {type(error).__name__}", writes=method != "GET") from None


@contextlib.contextmanager
def understood(*, writes: bool = False) -> Generator[None]:
    """Turn what comes of an answer of another shape into Transient; after a write into OutcomeUnknown."""
    try:
        yield
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        message = f"tastytrade's answer is not understood: {type(error).__name__}"
        raise _unclear(message, writes=writes) from error


def _unclear(message: str, *, writes: bool) -> Exception:
    return OutcomeUnknown(message) if writes else Transient(message)


def _error(answer: httpx.Response, *, writes: bool) -> Exception:
    """Return what an answer means that is no success."""
    status = answer.status_code
    if status in {_UNAUTHENTICATED, _FORBIDDEN}:
        return VenueRefused(f"tastytrade refuses this account: {_reason(answer)}")
    if status == _WAIT:
        return Busy("tastytrade asks to wait", retry_after_s=_wait_s(answer))
    if status in _DECLINED:
        return Declined(status, _reason(answer))
    return _unclear(f"tastytrade answered {status}", writes=writes)


def _wait_s(answer: httpx.Response) -> float:
    told = answer.headers.get("retry-after", "")
    return min(float(told), LONGEST_WAIT_S) if told.isascii() and told.isdigit() else WAIT_S


def _reason(answer: httpx.Response) -> str:
    """Return what the venue says is wrong: the nested errors where there are some, for the outer one only counts."""
    try:
        error = answer.json()["error"]
        nested = error.get("errors") or [error]
        said = [f"{one.get('code', '')}: {one.get('message') or one.get('reason', '')}".strip(": ") for one in nested]
    except (ValueError, KeyError, TypeError, AttributeError):
        said = []
    return "; ".join(one for one in said if one)[:_LONGEST_REASON] or f"status {answer.status_code}"
