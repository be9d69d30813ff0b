"""Stripe, through its own library: the only file that imports it.

What would surprise you: the library never repeats a write here. A write whose outcome is unknown is looked up before it
is repeated (services.payment.service.calls), and the library would repeat it blindly. Objects are the JSON that came,
for the library's own are no dictionaries and cannot be kept. The library is imported when it is first needed, for that
takes a second and opens a socket.
"""

import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, cast

import httpx
import msgspec

from services.payment.domain.stripe import KINDS, Hint, hint_of
from services.payment.ports import (
    BadSignature,
    BadWebhook,
    FailedReplay,
    Json,
    NoSuchObject,
    SignatureExpired,
    StripeRefused,
)
from shared.errors import Transient
from shared.external import calling
from shared.work import Busy, OutcomeUnknown

if TYPE_CHECKING:
    import stripe

VERSION: Final = "2026-10-28.endive"
READ_RETRIES: Final = 2
PAGE: Final = 100
TOLERANCE_S: Final = 300

_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_NOT_OURS: Final = frozenset({401, 403})
_GONE: Final = 404
_CONFLICT: Final = 409
_WAIT: Final = 429
_THEIR_FAULT: Final = 500


class _Thing(msgspec.Struct):
    object: Any = None
    id: Any = None
    customer: Any = None


class _Data(msgspec.Struct):
    object: _Thing


class _Envelope(msgspec.Struct):
    """What a hint is made of; to read the whole event takes three times as long."""

    id: Any = None
    object: Any = None
    type: Any = None
    created: Any = None
    livemode: Any = None
    data: _Data | None = None
    related_object: Any = None


_ENVELOPE: Final = msgspec.json.Decoder(_Envelope)


class UnsafeKey(RuntimeError):
    """A live key moves real money: it is for production only, and production takes no other."""


def check_key(key: str, environment: str) -> None:
    """Raise UnsafeKey for a live key outside production, and for a test key in production."""
    mode = key.split("_")[1:2]
    if environment != "production" and mode == ["live"]:
        raise UnsafeKey(f"OPENBELL_PAYMENT_STRIPE_KEY is a live key, and this is {environment}: use a test key here")
    if environment == "production" and mode == ["test"]:
        raise UnsafeKey(
            "OPENBELL_PAYMENT_STRIPE_KEY is a test key, and this is production: it would give plans away for no money"
        )


class StripeApi:
    """Stripe's API with one key."""

    def __init__(self, key: str, *, base: str | None = None, timeout_s: float = 20.0) -> None:
        self._key = key
        self._base = base
        self._timeout_s = timeout_s
        self._client: stripe.StripeClient | None = None
        self._http: stripe.HTTPXClient | None = None
        logging.getLogger("stripe").setLevel(logging.WARNING)  # below it the library logs whole bodies

    async def read(self, path: str, params: Json | None = None) -> Json:
        """GET."""
        return await self._request("get", path, params or {}, {"max_network_retries": READ_RETRIES})

    async def write(self, path: str, params: Json, *, key: str, method: str = "post") -> Json:
        """POST or DELETE, once; see services.payment.ports for how it may end."""
        return await self._request(method, path, params, {"idempotency_key": key, "max_network_retries": 0})

    async def fetch(self, kind: str, object_id: str) -> Json | None:
        """Return an object as it is now, with what its kind expands; None when it is gone, or was never there.

        A subscription that is past due says in `unpaid_since` when its first open invoice was made.
        """
        about = KINDS[kind]
        path = about.path.format(id=_safe(object_id))
        try:
            if about.query is not None:
                found = [one async for one in self._pages(path, {about.query: object_id})]
                return {"object": kind, "id": object_id, about.query: object_id, "data": found}
            told = await self.read(path, {"expand": list(about.expand)} if about.expand else None)
            if kind == "subscription" and told.get("status") == "past_due":
                told = {**told, "unpaid_since": await self._unpaid_since(object_id)}
        except NoSuchObject:
            return None
        return None if told.get("deleted") is True else told

    async def _unpaid_since(self, subscription: str) -> int | None:
        """Return when the first invoice was made that still waits for its payment."""
        waiting = self._pages("invoices", {"subscription": subscription, "status": "open"})
        return min([one["created"] async for one in waiting], default=None)

    async def list(self, kind: str, since: datetime | None = None) -> AsyncIterator[Json]:
        """Yield all objects of a kind, or those made since then, the newest first, with nothing expanded."""
        about = KINDS[kind]
        made = {} if since is None else {"created": {"gte": int(since.timestamp())}}
        async for one in self._pages(about.path.partition("/{id}")[0], {**(about.listed or {}), **made}):
            yield one

    async def undelivered(self, since: datetime) -> AsyncIterator[Json]:
        """Yield the events since then that Stripe could not deliver, the newest first."""
        params = {"delivery_success": "false", "created": {"gte": int(since.timestamp())}}
        async for one in self._pages("events", params):
            yield one

    async def close(self) -> None:
        """Give up the connections; another request opens new ones."""
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.close_async()

    async def _pages(self, path: str, params: Json) -> AsyncIterator[Json]:
        after: Json = {}
        while True:
            page = await self.read(path, {**params, **after, "limit": PAGE})
            found: Sequence[Json] = page["data"]
            for one in found:
                yield one
            if not found or page.get("has_more") is not True:
                return
            after = {"starting_after": found[-1]["id"]}

    async def _request(self, method: str, path: str, params: Json, options: Mapping[str, Any]) -> Json:
        import stripe  # noqa: PLC0415 - see above

        try:
            with calling("stripe") as call:
                try:
                    answer = await self._connected().raw_request_async(method, f"/v1/{path}", **params, **options)
                except stripe.StripeError as error:
                    call.status = error.http_status or call.status
                    raise
        except stripe.StripeError as error:
            raise _translated(error, sent=method != "get") from None
        return json.loads(answer.body, parse_float=Decimal)

    def _connected(self) -> "stripe.StripeClient":
        import stripe  # noqa: PLC0415 - see above

        if self._client is None:
            self._http = _http(self._timeout_s)
            base: Any = {} if self._base is None else {"api": self._base}
            self._client = stripe.StripeClient(
                self._key, base_addresses=base, http_client=self._http, stripe_version=VERSION
            )
        return self._client


def _http(timeout_s: float) -> "stripe.HTTPXClient":
    """Return the library's client; httpx gets forms as `content`, for `data` is for mappings there, and it warns."""
    import stripe  # noqa: PLC0415 - see above

    class Http(stripe.HTTPXClient):
        def _get_request_args_kwargs(self, method: str, url: str, headers: Mapping[str, str], post_data: Any) -> Any:
            args, options = cast("Any", super()._get_request_args_kwargs(method, url, headers, post_data))
            content = options.pop("data")
            return args, options | {"content": content or None}

    return Http(timeout=timeout_s)


class StripeWebhooks:
    """Tells Stripe's webhooks from anybody else's, with any of several secrets: while one is changed, both count."""

    def __init__(self, secrets: Sequence[str]) -> None:
        import stripe  # noqa: PLC0415 - see above

        self._secrets = tuple(secrets)
        self._refused = (stripe.SignatureVerificationError, ValueError)  # ValueError: bytes that are not UTF-8
        self._verify = stripe.WebhookSignature.verify_header
        self._parse_thin = stripe.StripeClient(
            "unused", http_client=stripe.HTTPClient()
        ).parse_event_notification_without_verification

    def read(self, body: bytes, signature: str | None, now: datetime) -> Hint:
        """Return what a webhook says. Raises BadSignature, SignatureExpired, BadWebhook."""
        if signature is None:
            raise BadSignature
        if not any(self._signed(body, signature, secret) for secret in self._secrets):
            raise BadSignature
        # The library's own tolerance looks to the past alone.
        if abs(now.timestamp() - _made_at(signature)) > TOLERANCE_S:
            raise SignatureExpired
        try:
            event = _ENVELOPE.decode(body)
            if event.object == "v2.core.event":
                self._parse_thin(body)
            return hint_of(msgspec.to_builtins(event))
        except (msgspec.DecodeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise BadWebhook from error

    def _signed(self, body: bytes, signature: str, secret: str) -> bool:
        try:
            return self._verify(body, signature, secret)
        except self._refused:
            return False


def _made_at(signature: str) -> int:
    """Return the time in a header that is known to be good: the first one, as the library takes it."""
    return next(int(part[2:]) for part in signature.split(",") if part.startswith("t="))


def _safe(object_id: str) -> str:
    """Return an id fit for a path. Stripe's are letters, digits and underscores."""
    if not object_id.replace("_", "").replace("-", "").isalnum() or not object_id.isascii():
        raise StripeRefused("that is no id of Stripe's")
    return object_id


def _translated(error: "stripe.StripeError", *, sent: bool) -> Exception:
    """Return our error; `sent` says whether an attempt that broke off may have had an effect."""
    import stripe  # noqa: PLC0415 - see above

    status = error.http_status
    if isinstance(error, stripe.APIConnectionError) or status is None:
        cause = type(error.__cause__).__name__ if error.__cause__ else type(error).__name__
        if not sent or isinstance(error.__cause__, _NOT_SENT):
            return Transient(f"Stripe is not reachable: {cause}")
        return OutcomeUnknown(f"Stripe did not answer: {cause}")
    if status >= _THEIR_FAULT or status < 400:  # noqa: PLR2004 - what is no error and no answer either
        if not sent:
            return Transient(f"Stripe answered {status}")
        replayed = (error.headers or {}).get("idempotent-replayed") == "true"
        return (FailedReplay if replayed else OutcomeUnknown)(f"Stripe answered {status}")
    return _later(status) or _refusal(error, status)


def _later(status: int) -> Transient | None:
    if status in _NOT_OURS:
        return Transient(f"Stripe refuses our key: {status}", retry_after_s=30)
    if status == _WAIT:
        return Busy("Stripe asks to wait", retry_after_s=1.0, everyone=True)
    if status == _CONFLICT:
        return Transient("Stripe is working on the same request", retry_after_s=1.0)
    return None


def _refusal(error: "stripe.StripeError", status: int) -> StripeRefused:
    param = error.error.param if error.error is not None else None
    missing = status == _GONE or error.code == "resource_missing"
    kind = NoSuchObject if missing else StripeRefused
    reason = error.code or (error.error.type if error.error is not None else None)
    return kind(f"Stripe refuses this: {reason or status}", reason=reason, param=param)
