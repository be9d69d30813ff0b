"""Handing mail in by HTTPS, as providers of mail take it: what all of them have in common.

How an answer reads (see services.alerts.ports): 429 is Busy for the time it names; 401 and 403 are about our key or our
domain, not about the message, and pass when somebody puts them right; other 4xx refuse the message; 5xx pass.

What would surprise you: httpx logs URLs and nothing else; an address stands in the body, which it does not log.
"""

import base64
from collections.abc import Mapping
from typing import Any, Final

import httpx

from services.alerts.adapters.answers import seconds
from shared.errors import Permanent, Transient
from shared.external import Client
from shared.work import Busy, OutcomeUnknown

LONGEST_WAIT_S: Final = 86_400.0

_OURS: Final = frozenset({401, 403})
_WAIT: Final = 429
_TOO_LARGE: Final = 413
_THEIR_FAULT: Final = 500


class MailApi:
    """Posts JSON with a key, over pooled connections."""

    def __init__(self, name: str, base: str, key: str, *, connections: int, timeout_s: float) -> None:
        self.name = name
        self._base = base
        self._headers = {"authorization": f"Bearer {key}", "user-agent": "Openbell (alerts)"}
        self._timeout = httpx.Timeout(timeout_s, pool=30.0)
        self._limits = httpx.Limits(max_connections=connections, keepalive_expiry=60.0)
        self._http: httpx.AsyncClient | None = None

    async def post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        """Return the answer, whatever it is. Raises Transient when nothing was sent, OutcomeUnknown when none came."""
        try:
            return await self._client().post(path, json=body, headers=dict(headers))
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Transient(f"{self.name} is not reachable: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise OutcomeUnknown(f"{self.name} did not answer: {type(error).__name__}") from None

    def refusal(self, answer: httpx.Response, *, code: str) -> Exception:
        """Return what an answer that is no success means."""
        status = answer.status_code
        if status == _WAIT:
            wait_s = seconds(answer.headers.get("retry-after"), LONGEST_WAIT_S) or 1.0
            return Busy(f"{self.name} asks to wait", retry_after_s=wait_s, everyone=True)
        if status in _OURS:
            return Transient(f"{self.name} refuses our key or our domain: {status} {code}".rstrip())
        if status >= _THEIR_FAULT:
            return Transient(
                f"{self.name} answered {status}",
                retry_after_s=seconds(answer.headers.get("retry-after"), LONGEST_WAIT_S),
            )
        if status == _TOO_LARGE:
            return Permanent(f"the mail is larger than {self.name} takes")
        return Permanent(f"{self.name} refused the mail: {status} {code}".rstrip())

    async def close(self) -> None:
        """Close the connections; another post opens new ones."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = Client(
                self.name.lower(),
                base_url=self._base,
                timeout=self._timeout,
                limits=self._limits,
                headers=self._headers,
            )
        return self._http


def base64_of(content: bytes) -> str:
    """Return an attachment as JSON carries it."""
    return base64.b64encode(content).decode()
