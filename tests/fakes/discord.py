"""A stand-in for Discord's webhooks: a real HTTP server that enforces the documented limits.

    with FakeDiscord() as discord:
        url = discord.webhook()
        ...
        discord.posts[0].payload

What is documented and held here: a bucket for each webhook, told in headers, 429 with a decimal `retry_after`
beyond it (docs/topics/rate-limits); the lengths of content and embeds (docs/resources/message), 400 beyond them;
404 with code 10015 for a webhook that does not exist; 204 without `wait=true`; a limit over all webhooks, 429 with
`global` beyond it; a picture by multipart, 413 when it is too large, 400 when an embed names one that is not there; and
the ban after 10,000 invalid answers (401, 403, 404, 429) in ten minutes, by which Cloudflare answers 429 to everything.
It runs in a thread of its own, so that any process may post to it.
"""

import asyncio
import contextlib
import itertools
import json
import secrets
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any, Self
from urllib.parse import parse_qs

from tests.fakes.serving import serving

CONTENT_MAX = 2_000
EMBEDS_MAX = 10
FIELDS_MAX = 25
TOTAL_MAX = 6_000
FILES_MAX = 8 * 1024 * 1024
BAN_AFTER = 10_000
BAN_WINDOW_S = 600.0
BAN_S = 3_600.0
INVALID = frozenset({401, 403, 404, 429})
LENGTHS = {"title": 256, "description": 4_096}


@dataclass(frozen=True)
class Post:
    """A request that came in, and how it was answered. `at` is Unix time."""

    url: str
    payload: Any
    status: int
    at: float
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """A scripted answer. `hang` takes the message and never answers."""

    status: int = 500
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False


class FakeDiscord:
    """Webhooks on 127.0.0.1, between `with` and its end."""

    def __init__(
        self,
        *,
        limit: int = 5,
        window_s: float = 2.0,
        global_limit: int = 1_000_000,
        ban_after: int = BAN_AFTER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.posts: list[Post] = []
        """Messages that were accepted, in order."""
        self.requests: list[Post] = []
        """Everything that came in."""
        self.base = ""
        self._limit = limit
        self._window_s = window_s
        self._global_limit = global_limit
        self._lately: deque[float] = deque()
        self._ban_after = ban_after
        self._invalid: deque[float] = deque()
        self._banned_until = 0.0
        self._clock = clock
        self._hooks: set[str] = set()
        self._script: dict[str, deque[Answer]] = defaultdict(deque)
        self._taken: dict[str, deque[float]] = defaultdict(deque)
        self._ids = itertools.count(1_200_000_000_000_000_000)
        self._served = contextlib.ExitStack()

    def webhook(self) -> str:
        """Make a webhook; return its URL, the secret included."""
        path = f"/api/webhooks/{next(self._ids)}/{secrets.token_urlsafe(51)}"
        self._hooks.add(path)
        return self.base + path

    def remove(self, url: str) -> None:
        """Delete a webhook."""
        self._hooks.discard(url.removeprefix(self.base))

    def answer(self, url: str, *answers: Answer) -> None:
        """Answer the next requests to a webhook with these, then as usual."""
        self._script[url.removeprefix(self.base)].extend(answers)

    def __enter__(self) -> Self:
        self.base = self._served.enter_context(serving(self._app, "discord"))
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
        status, answer, headers = self._handle_or_ban(scope, body)
        if status == 0:
            await asyncio.Event().wait()
        content = b"" if answer is None else json.dumps(answer).encode()
        headers = {
            "content-type": "application/json",
            **({} if answer is _BANNED else {"via": "1.1 google"}),
            **headers,
        }
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        raw.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": content})

    def _handle_or_ban(self, scope: Any, body: bytes) -> tuple[int, Any, dict[str, str]]:
        now = self._clock()
        if now < self._banned_until:
            self._note(scope["path"], None, 429)
            return 429, _BANNED, {"Retry-After": str(int(self._banned_until - now) + 1)}
        while self._lately and self._lately[0] <= now - 1.0:
            self._lately.popleft()
        if len(self._lately) >= self._global_limit:
            self._note(scope["path"], None, 429)
            wait_s = round(self._lately[0] + 1.0 - now, 3)
            told = {"message": "You are being rate limited.", "retry_after": wait_s, "global": True}
            answered = 429, told, {"Retry-After": f"{wait_s}", "X-RateLimit-Global": "true"}
        else:
            self._lately.append(now)
            answered = self._handle(scope, body)
        if answered[0] in INVALID:
            self._invalid.append(now)
            while self._invalid[0] <= now - BAN_WINDOW_S:
                self._invalid.popleft()
            if len(self._invalid) >= self._ban_after:
                self._banned_until = now + BAN_S
        return answered

    def _handle(self, scope: Any, body: bytes) -> tuple[int, Any, dict[str, str]]:
        path = scope["path"]
        payload, files = _parts_of(scope, body)
        if self._script[path]:
            scripted = self._script[path].popleft()
            self._note(path, payload, scripted.status, accepted=scripted.hang)
            return (0 if scripted.hang else scripted.status), scripted.body, scripted.headers
        if scope["method"] != "POST" or path not in self._hooks:
            self._note(path, payload, 404)
            return 404, {"message": "Unknown Webhook", "code": 10015}, {}
        left, reset_s = self._take(path)
        limits = {
            "X-RateLimit-Limit": str(self._limit),
            "X-RateLimit-Remaining": str(max(left, 0)),
            "X-RateLimit-Reset": f"{time.time() + reset_s:.3f}",
            "X-RateLimit-Reset-After": f"{reset_s:.3f}",
            "X-RateLimit-Bucket": "b" + path[-8:],
        }
        if left < 0:
            self._note(path, payload, 429)
            headers = {**limits, "Retry-After": f"{reset_s:.3f}", "X-RateLimit-Scope": "user"}
            answer = {"message": "You are being rate limited.", "retry_after": round(reset_s, 3), "global": False}
            return 429, answer, headers
        large = sum(map(len, files.values())) > FILES_MAX
        problem = "Request entity too large" if large else find_problem(payload, files)
        if problem is not None:
            status, code = (413, 40005) if large else (400, 50035)
            self._note(path, payload, status)
            return status, {"message": problem, "code": code}, limits
        waits = parse_qs(scope["query_string"].decode()).get("wait") == ["true"]
        self._note(path, payload, 200 if waits else 204, accepted=True, files=files)
        return (200, {"id": str(next(self._ids)), "type": 0}, limits) if waits else (204, None, limits)

    def _take(self, path: str) -> tuple[int, float]:
        """Return how many requests are left in the bucket (negative: none was), and when it is full again."""
        now = self._clock()
        taken = self._taken[path]
        while taken and taken[0] <= now - self._window_s:
            taken.popleft()
        if len(taken) >= self._limit:
            return -1, taken[0] + self._window_s - now
        taken.append(now)
        return self._limit - len(taken), taken[0] + self._window_s - now

    def _note(
        self, path: str, payload: Any, status: int, *, accepted: bool = False, files: dict[str, bytes] | None = None
    ) -> None:
        post = Post(self.base + path, payload, status, time.time(), files or {})
        self.requests.append(post)
        if accepted:
            self.posts.append(post)


_BANNED = "You are being blocked from accessing our API temporarily due to exceeding our rate limits frequently."


def _parts_of(scope: Any, body: bytes) -> tuple[Any, dict[str, bytes]]:
    """Return the payload and the files by name, of JSON or of a form with `payload_json`."""
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    files: dict[str, bytes] = {}
    if kind.startswith(b"multipart/form-data"):
        form = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + kind + b"\r\n\r\n" + body)
        body = b""
        for part in form.iter_parts():
            content: Any = part.get_payload(decode=True)
            if part.get_param("name", header="content-disposition") == "payload_json":
                body = content
            else:
                files[str(part.get_filename())] = content
    try:
        return json.loads(body), files
    except ValueError:
        return None, files


def find_problem(payload: Any, files: dict[str, bytes] | None = None) -> str | None:
    """Return what Discord would say against a message; None when it takes it."""
    if not isinstance(payload, dict):
        return "Invalid JSON"
    pictures = [(embed.get("image") or {}).get("url", "") for embed in payload.get("embeds") or []]
    named = {url.removeprefix("attachment://") for url in pictures if url.startswith("attachment://")}
    if not named <= (files or {}).keys():
        return "embeds: an attachment is not there"
    content, embeds = payload.get("content") or "", payload.get("embeds") or []
    checks = {
        "Cannot send an empty message": not content and not embeds,
        "content: Must be 2000 or fewer in length.": len(content) > CONTENT_MAX,
        "embeds: Must be 10 or fewer in length.": len(embeds) > EMBEDS_MAX,
        "embeds: a part is too long": any(_has_long_part(embed) for embed in embeds),
        "embeds: Embed size exceeds maximum size of 6000": sum(map(_size, embeds)) > TOTAL_MAX,
    }
    return next((problem for problem, found in checks.items() if found), None)


def _parts(embed: dict[str, Any]) -> list[tuple[str, int]]:
    """Return (text, how long it may be) of all parts of an embed that count."""
    parts = [(embed.get(name) or "", longest) for name, longest in LENGTHS.items()]
    parts.append(((embed.get("footer") or {}).get("text") or "", 2_048))
    parts.append(((embed.get("author") or {}).get("name") or "", 256))
    for one in embed.get("fields") or []:
        parts += [(one["name"], 256), (one["value"], 1_024)]
    return parts


def _has_long_part(embed: dict[str, Any]) -> bool:
    return len(embed.get("fields") or []) > FIELDS_MAX or any(len(text) > most for text, most in _parts(embed))


def _size(embed: dict[str, Any]) -> int:
    return sum(len(text) for text, _ in _parts(embed))
