"""Push to apps by Firebase Cloud Messaging, HTTP v1.

A service account's signed assertion (RFC 7523) is changed for an access token, which is kept until shortly before its
end and asked for by one caller at a time. FCM knows no idempotency key: a message carries its delivery's id as
collapse key and as tag of the notification, so that a device shows a repeat in the place of the first. An unknown
outcome is sent again.

What would surprise you: INVALID_ARGUMENT is about a token only when FCM names the field; else it is about the message.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import httpx
from joserfc import jwt
from joserfc.jwk import RSAKey

from services.alerts.domain.text import Message
from services.alerts.ports import ChannelGone, Sent
from services.alerts.templates import rendered
from shared.clock import Clock, utc_now
from shared.errors import Permanent, Transient
from shared.external import Client
from shared.outward import wait_of
from shared.work import Busy, OutcomeUnknown

PAYLOAD_MAX: Final = 4_000
"""Documented: 4,096 bytes of notification and data."""
SCOPE: Final = "https://www.googleapis.com/auth/firebase.messaging"
TTL_S: Final = 6 * 3600

_ASSERTION: Final = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_EARLY_S: Final = 120.0
_QUOTA_WAIT_S: Final = 60.0  # what the documentation asks for where no Retry-After is sent
_UNAUTHORIZED: Final = 401
_FORBIDDEN: Final = 403
_WAIT: Final = 429
_THEIR_FAULT: Final = 500
_GONE: Final = {
    "UNREGISTERED": "the app was removed from this device, or its token is not valid any more",
    "SENDER_ID_MISMATCH": "this token belongs to another sender",
}


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """Who sends: the parts of Google's key file that are used."""

    project_id: str
    client_email: str
    private_key: str = field(repr=False)
    token_uri: str = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address

    @classmethod
    def read(cls, path: Path) -> "ServiceAccount":
        """Read a key file; raises OSError, ValueError for what is none."""
        try:
            told: dict[str, Any] = json.loads(path.read_bytes())
            return cls(told["project_id"], told["client_email"], told["private_key"], told["token_uri"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError("this is not the key file of a service account") from error


class Fcm:
    """Sends messages to registration tokens, over pooled connections."""

    def __init__(
        self,
        account: ServiceAccount,
        *,
        base: str = "https://fcm.googleapis.com",
        connections: int = 16,
        timeout_s: float = 10.0,
        clock: Clock = utc_now,
    ) -> None:
        self._account = account
        self._key = RSAKey.import_key(account.private_key)
        self._url = f"{base}/v1/projects/{account.project_id}/messages:send"
        self._timeout = httpx.Timeout(timeout_s, pool=30.0)
        self._limits = httpx.Limits(max_connections=connections, keepalive_expiry=60.0)
        self._clock = clock
        self._http: httpx.AsyncClient | None = None
        self._asking = asyncio.Lock()
        self._access: tuple[str, float] | None = None

    async def send(self, message: Message) -> Sent:
        """Send the message; see services.alerts.ports for how it may end."""
        token = await self._token()
        headers = {"authorization": f"Bearer {token}"}
        try:
            answer = await self._client().post(self._url, headers=headers, json={"message": payload(message)})
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Transient(f"FCM is not reachable: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise OutcomeUnknown(f"FCM did not answer: {type(error).__name__}") from None
        if answer.is_success:
            return Sent(str(_json(answer).get("name", "")))
        if answer.status_code == _UNAUTHORIZED and self._access is not None and self._access[0] == token:
            self._access = None
        raise self._refusal(answer)

    async def close(self) -> None:
        """Close the connections; another send opens new ones."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()

    async def _token(self) -> str:
        async with self._asking:
            now_s = self._clock().timestamp()
            if self._access is None or now_s >= self._access[1]:
                self._access = await self._exchange(now_s)
            return self._access[0]

    async def _exchange(self, now_s: float) -> tuple[str, float]:
        account = self._account
        claims = {
            "iss": account.client_email,
            "scope": SCOPE,
            "aud": account.token_uri,
            "iat": int(now_s),
            "exp": int(now_s) + 3600,
        }
        form = {"grant_type": _ASSERTION, "assertion": jwt.encode({"alg": "RS256", "typ": "JWT"}, claims, self._key)}
        try:
            answer = await self._client().post(account.token_uri, data=form)
        except httpx.HTTPError as error:
            raise Transient(f"Google gives no token: {type(error).__name__}") from None
        told = _json(answer)
        if not answer.is_success or "access_token" not in told:
            raise Transient(f"Google gives no token: {answer.status_code}", retry_after_s=self._wait_s(answer))
        return str(told["access_token"]), now_s + float(told.get("expires_in", 0)) - _EARLY_S

    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = Client("fcm", timeout=self._timeout, limits=self._limits)
        return self._http

    def _wait_s(self, answer: httpx.Response) -> float | None:
        return wait_of(answer.headers.get("retry-after"), self._clock())

    def _refusal(self, answer: httpx.Response) -> Exception:
        status, code = answer.status_code, _code(answer)
        if code in _GONE:
            return ChannelGone(_GONE[code])
        if code == "INVALID_ARGUMENT" and "message.token" in _fields(answer):
            return ChannelGone("this is not a registration token of FCM")
        if code == "QUOTA_EXCEEDED" or status == _WAIT:
            return Busy("FCM asks to wait", retry_after_s=self._wait_s(answer) or _QUOTA_WAIT_S)
        ours = status == _FORBIDDEN or (status == _UNAUTHORIZED and code != "THIRD_PARTY_AUTH_ERROR")
        if status >= _THEIR_FAULT or ours:  # our key's role, or the API, may be switched off: somebody will mend that
            return Transient(f"FCM answered {status}", retry_after_s=self._wait_s(answer))
        return Permanent(f"FCM refused the message: {status}, {code or 'no code'}")


def payload(message: Message) -> dict[str, Any]:
    """Return FCM's message: a notification, and its delivery's id as data, collapse key and tag."""
    tag = str(message.delivery_id)
    shown = rendered("fcm", message)
    title = shortened(shown.subject, PAYLOAD_MAX // 4)
    url = {} if message.link is None else {"url": message.link}
    opens = {"fcm_options": {"link": message.link}} if message.link and message.link.startswith("https://") else {}
    room = PAYLOAD_MAX - len(title.encode()) - 200 - 2 * len(message.link or "")
    return {
        "token": message.target,
        "notification": {"title": title, "body": shortened(shown.text.strip(), room)},
        "data": {"id": tag, "at": message.at.isoformat(), "simulated": str(message.simulated).lower(), **url},
        "android": {"collapse_key": tag, "ttl": f"{TTL_S}s", "priority": "high", "notification": {"tag": tag}},
        "apns": {"headers": {"apns-collapse-id": tag}},
        "webpush": {"headers": {"TTL": str(TTL_S)}, "notification": {"tag": tag}, **opens},
    }


def shortened(text: str, longest: int) -> str:
    """Return a text in at most so many bytes of UTF-8, cut with an ellipsis."""
    packed = text.encode("utf-8", "replace")
    if len(packed) <= longest:
        return packed.decode()
    return packed[: longest - 3].decode("utf-8", "ignore") + "…"


def _code(answer: httpx.Response) -> str:
    """Return FCM's own code where there is one, else the status of Google's error."""
    error = _error(answer)
    for one in _details(error):
        if str(one.get("@type", "")).endswith("FcmError") and "errorCode" in one:
            return str(one["errorCode"])
    return str(error.get("status", ""))


def _fields(answer: httpx.Response) -> set[str]:
    """Return the fields that FCM finds fault with."""
    return {
        str(violation.get("field"))
        for one in _details(_error(answer))
        for violation in one.get("fieldViolations", ())
        if isinstance(violation, Mapping)
    }


def _error(answer: httpx.Response) -> dict[str, Any]:
    error = _json(answer).get("error")
    return cast("dict[str, Any]", error) if isinstance(error, dict) else {}


def _details(error: Mapping[str, Any]) -> list[dict[str, Any]]:
    details = error.get("details")
    return [one for one in cast("list[Any]", details) if isinstance(one, dict)] if isinstance(details, list) else []


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return {}
    return cast("dict[str, Any]", body) if isinstance(body, dict) else {}
