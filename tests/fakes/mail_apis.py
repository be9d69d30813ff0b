"""Stand-ins for SendGrid's Mail Send and Resend's POST /emails: real HTTP servers that hold their documented limits.

    with FakeSendGrid() as server:
        SendGrid(server.key, "alerts@openbell.invalid", base=server.base)
        ...
        server.mails[0]["subject"]

SendGrid: 202 with X-Message-Id; a refusal lists errors with their fields; headers that it sets itself are refused;
30 MB. Resend: an idempotency key of at most 256 characters is remembered with its words, other words under it are
answered with 409; two requests a second are the default limit, told in headers; an error has statusCode, name and
message; 40 MB.
"""

import asyncio
import contextlib
import hashlib
import itertools
import json
import re
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from tests.fakes.serving import serving

ADDRESS = re.compile(r"(?:[^<>\r\n]* <)?[^\s<>@]+@[^\s<>@]+\.[^\s<>@]+>?")
SET_BY_SENDGRID = {"x-sg-id", "x-sg-eid", "received", "dkim-signature", "content-type", "to", "from", "subject", "cc"}


@dataclass(frozen=True)
class Refuse:
    """A scripted answer. `hang` takes the mail and never answers."""

    status: int = 500
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False


Answered = tuple[int, Any, dict[str, str]]


class _FakeApi:
    path = ""
    most_bytes = 0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.key = secrets.token_urlsafe(24)
        self.mails: list[dict[str, Any]] = []
        """Mails that were taken, in order."""
        self.requests: list[dict[str, str]] = []
        """The headers of everything that came in."""
        self.base = ""
        self._clock = clock
        self._script: deque[Refuse] = deque()
        self._served = contextlib.ExitStack()

    def answer(self, *answers: Refuse) -> None:
        """Answer the next requests with these, then as usual."""
        self._script.extend(answers)

    def __enter__(self) -> Self:
        self.base = self._served.enter_context(serving(self._app, type(self).__name__))
        return self

    def __exit__(self, *_: object) -> None:
        self._served.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append(headers)
        status, answer, more = self._handle(scope["method"], scope["path"], headers, body)
        if status == 0:
            await asyncio.Event().wait()
        content = b"" if answer is None else json.dumps(answer).encode()
        more = {"content-type": "application/json", "content-length": str(len(content)), **more}
        raw = [(name.lower().encode(), value.encode()) for name, value in more.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content})

    def _handle(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answered:
        if (method, path) != ("POST", self.path):
            return self.refuse(404, "not_found", "there is no such route")
        if headers.get("authorization") != f"Bearer {self.key}":
            return self.refuse(401 if "authorization" not in headers else self.wrong_key, "invalid_api_key", "no")
        if len(body) > self.most_bytes:
            return self.refuse(413, "validation_error", "too large")
        mail = json.loads(body)
        if self._script:
            scripted = self._script.popleft()
            if scripted.hang:
                self.taken(mail, headers, body)
            return (0 if scripted.hang else scripted.status), scripted.body, scripted.headers
        return self.taken(mail, headers, body)

    wrong_key = 401

    def refuse(self, status: int, name: str, message: str) -> Answered:
        raise NotImplementedError

    def taken(self, mail: Any, headers: dict[str, str], body: bytes) -> Answered:
        raise NotImplementedError


class FakeSendGrid(_FakeApi):
    """SendGrid on 127.0.0.1, between `with` and its end."""

    path = "/v3/mail/send"
    most_bytes = 30 * 1024 * 1024

    def refuse(self, status: int, name: str, message: str) -> Answered:
        return status, {"errors": [{"message": message, "field": None if status != 400 else name, "help": None}]}, {}

    def taken(self, mail: Any, headers: dict[str, str], body: bytes) -> Answered:
        to = mail["personalizations"][0]["to"][0]["email"]
        if not ADDRESS.fullmatch(to):
            return self.refuse(400, "personalizations.0.to.0.email", "Does not contain a valid address.")
        if not mail.get("subject"):
            return self.refuse(400, "subject", "The subject is required.")
        if [one["type"] for one in mail["content"]] != ["text/plain", "text/html"]:
            return self.refuse(400, "content", "text/plain comes first")
        if SET_BY_SENDGRID & {name.lower() for name in mail.get("headers", {})}:
            return self.refuse(400, "headers", "reserved")
        if len(json.dumps(mail.get("custom_args", {}))) > 10_000:
            return self.refuse(400, "custom_args", "too long")
        self.mails.append(mail)
        return 202, None, {"X-Message-Id": secrets.token_urlsafe(16)}


class FakeResend(_FakeApi):
    """Resend on 127.0.0.1, between `with` and its end; `limit` requests a second."""

    path = "/emails"
    most_bytes = 40 * 1024 * 1024
    wrong_key = 403

    def __init__(self, *, limit: int = 1_000, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._limit = limit
        self._lately: deque[float] = deque()
        self._known: dict[str, tuple[str, str]] = {}
        self._ids = itertools.count(1)

    def refuse(self, status: int, name: str, message: str) -> Answered:
        return status, {"statusCode": status, "name": name, "message": message}, {}

    def taken(self, mail: Any, headers: dict[str, str], body: bytes) -> Answered:
        now = self._clock()
        while self._lately and self._lately[0] <= now - 1.0:
            self._lately.popleft()
        if len(self._lately) >= self._limit:
            status, told, _ = self.refuse(429, "rate_limit_exceeded", "Too many requests.")
            return status, told, {"retry-after": "1", "ratelimit-limit": str(self._limit), "ratelimit-remaining": "0"}
        self._lately.append(now)
        key, words = headers.get("idempotency-key"), hashlib.sha256(body).hexdigest()
        if key is not None and len(key) > 256:
            return self.refuse(400, "invalid_idempotency_key", "1-256 chars")
        if key in self._known:
            before, mail_id = self._known[key]
            return (200, {"id": mail_id}, {}) if before == words else self.refuse(409, "invalid_idempotent_request", "")
        problem = _problem(mail)
        if problem is not None:
            return self.refuse(422, *problem)
        mail_id = f"00000000-0000-4000-8000-{next(self._ids):012d}"
        if key is not None:
            self._known[key] = (words, mail_id)
        self.mails.append(mail)
        return 200, {"id": mail_id}, {}


def _problem(mail: Any) -> tuple[str, str] | None:
    for name in ("from", "to", "subject"):
        if not mail.get(name):
            return "missing_required_field", f"Missing `{name}` field."
    if not ADDRESS.fullmatch(mail["from"]):
        return "invalid_from_address", "Invalid `from` field."
    if len(mail["to"]) > 50 or not all(ADDRESS.fullmatch(one) for one in mail["to"]):
        return "validation_error", "Invalid `to` field."
    tags = [*mail.get("tags", [])]
    if not all(re.fullmatch(r"[A-Za-z0-9_-]{1,256}", one[part]) for one in tags for part in ("name", "value")):
        return "validation_error", "Tags have letters, digits, underscores and dashes."
    return None
