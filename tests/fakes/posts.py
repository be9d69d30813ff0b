"""What the stand-ins of push services and webhooks share: a server that keeps posts and answers as it is told."""

import asyncio
import contextlib
import json
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any, Self

from tests.fakes.serving import serving


@dataclass(frozen=True)
class Answer:
    """A scripted answer. `hang` takes the request and never answers, `endless` never stops answering."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    endless: bool = False


@dataclass(frozen=True)
class Request:
    """A request that came in; the names of headers are small."""

    path: str
    headers: dict[str, str]
    body: bytes


class Posts:
    """A server on 127.0.0.1, between `with` and its end; `take` says what it does with a request."""

    def __init__(self) -> None:
        self.base = ""
        self.requests: list[Request] = []
        self._script: dict[str, deque[Answer]] = defaultdict(deque)
        self._served = contextlib.ExitStack()

    def answer(self, path: str, *answers: Answer) -> None:
        """Answer the next requests to a path with these, then as usual."""
        self._script[path].extend(answers)

    def take(self, request: Request) -> Answer:
        """Return the usual answer."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.base = self._served.enter_context(serving(self._app, type(self).__name__))
        return self

    def __exit__(self, *_: object) -> None:
        self._served.close()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":  # whoever asked died before the end of the body
                return
            body += part.get("body", b"")
            more = part.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        request = Request(scope["path"], headers, body)
        self.requests.append(request)
        script = self._script[request.path]
        answer = script.popleft() if script else self.take(request)
        if answer.hang:
            await asyncio.Event().wait()
        content = b"" if answer.body is None else json.dumps(answer.body).encode()
        raw = [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": raw})
        if answer.endless:
            gone = asyncio.create_task(receive())  # what comes after a body: that the other side went
            while not gone.done():
                await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
                await asyncio.sleep(0)
            return
        await send({"type": "http.response.body", "body": content})
