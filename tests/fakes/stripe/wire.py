"""The fake's HTTP: forms in, JSON out, keys checked, idempotency kept, faults made when a test asks for them."""

import asyncio
import json
import re
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl

from tests.fakes.stripe.api import Api
from tests.fakes.stripe.books import DAY, Obj, Refused

Answer = tuple[int, Obj, dict[str, str]]
HANGS: Final = 0


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request: a status (0: no answer ever), before or after it took effect.

    `retry` is Stripe's word on whether to try again. A 500 is kept as the answer of its idempotency key, as
    Stripe does; a 429 is not, because nothing had begun.
    """

    status: int = 500
    effect: bool = False
    retry: bool | None = None


@dataclass(frozen=True)
class Request:
    """A request that came in, and how it was answered; status 0 never was."""

    method: str
    path: str
    params: Obj
    key: str | None
    status: int
    version: str | None


class Wire:
    """An ASGI application in front of an account."""

    def __init__(self, api: Api, secret_key: str) -> None:
        self.api = api
        self.lock = threading.RLock()
        self.requests: list[Request] = []
        self._secret_key = secret_key
        self._faults: list[tuple[str, str, deque[Fault]]] = []
        self._kept: dict[str, tuple[int, tuple[str, str, str], Answer]] = {}

    def fail(self, method: str, path: str, *faults: Fault) -> None:
        """Let the next requests of this method, whose path matches the expression wholly, go wrong."""
        self._faults.append((method, path, deque(faults)))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        form = body if scope["method"] == "POST" else scope["query_string"]
        with self.lock:
            status, answer, more = self._handle(scope["method"], scope["path"], parse(form.decode()), headers)
        if status == HANGS:
            await asyncio.Event().wait()
        content = json.dumps(answer).encode()
        raw = [(name.lower().encode(), value.encode()) for name, value in more.items()]
        raw += [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content})

    def _handle(self, method: str, path: str, params: Obj, headers: dict[str, str]) -> Answer:
        key = headers.get("idempotency-key") if method == "POST" else None
        request_id = self.api.books.new_id("req")
        self.api.books.request = {"id": request_id, "idempotency_key": key}
        status, body, more = self._answer(method, path, params, headers, key)
        self.requests.append(Request(method, path, params, key, status, headers.get("stripe-version")))
        return status, body, {"Request-Id": request_id} | more

    def _answer(self, method: str, path: str, params: Obj, headers: dict[str, str], key: str | None) -> Answer:
        if headers.get("authorization") != f"Bearer {self._secret_key}":
            return 401, _error("invalid_request_error", "Invalid API Key provided: sk_****"), {}
        fault = self._fault(method, path)
        if fault is not None and fault.status == 429:
            return 429, _error("invalid_request_error", "Request rate limit exceeded.", "rate_limit"), _word(fault)
        sent = (method, path, json.dumps(params, sort_keys=True))
        now = self.api.books.now
        if key is not None and key in self._kept and self._kept[key][0] + DAY > now:
            _, first, answer = self._kept[key]
            if first != sent:
                message = (
                    "Keys for idempotent requests can only be used with the same parameters they were first used with."
                )
                return 400, _error("idempotency_error", message, "idempotency_key_in_use"), {}
            return answer[0], answer[1], answer[2] | {"Idempotent-Replayed": "true"}
        answer = self._perform(method, path, params, fault)
        if key is not None and answer[0] != 400:
            self._kept[key] = (now, sent, answer)
        if fault is not None and fault.status == HANGS:
            return HANGS, {}, {}
        return answer

    def _perform(self, method: str, path: str, params: Obj, fault: Fault | None) -> Answer:
        broken = 500, _error("api_error", "An unknown error occurred"), _word(fault) if fault else {}
        if fault is not None and not fault.effect:
            return broken
        try:
            done = self.api.call(method, path, dict(params))
        except Refused as error:
            return error.status, error.body, {}
        return broken if fault is not None and fault.status != HANGS else (200, done, {})

    def _fault(self, method: str, path: str) -> Fault | None:
        for verb, pattern, faults in self._faults:
            if faults and verb == method and re.fullmatch(pattern, path):
                return faults.popleft()
        return None


def parse(form: str) -> Obj:
    """Return `a[b][0]=c` as {"a": {"b": ["c"]}}; all leaves are text."""
    tree: Obj = {}
    for name, value in parse_qsl(form, keep_blank_values=True):
        parts = [part.rstrip("]") for part in name.split("[")]
        place = tree
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = value
    return _lists(tree)


def _lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    grown = {name: _lists(value) for name, value in tree.items()}
    if grown and all(name.isdigit() for name in grown):
        return [grown[name] for name in sorted(grown, key=int)]
    if set(grown) == {""}:
        return [grown[""]]
    return grown


def _error(kind: str, message: str, code: str | None = None) -> Obj:
    return {"error": {"type": kind, "message": message} | ({"code": code} if code else {})}


def _word(fault: Fault) -> dict[str, str]:
    return {} if fault.retry is None else {"Stripe-Should-Retry": "true" if fault.retry else "false"}
