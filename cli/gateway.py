"""The gateway as the command sees it: where it is, with which key, and how a call may fail.

A POST carries an Idempotency-Key and is sent again when the connection breaks: it is done once.
"""

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx

OK, REFUSED, USAGE, UNREACHABLE, INCOMPLETE = range(5)
"""Exit codes: the last one says that `unavailable` names services that did not answer."""

ATTEMPTS: Final = 3
DEMO: Final = Path(".openbell/demo.json")


class Failure(Exception):  # not an error of ours: the way out with an exit code
    """The command ends here: with a message for people, and the code for scripts."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Place:
    """Where the gateway is, and an administrator's key."""

    url: str
    key: str

    @classmethod
    def find(cls, url: str | None, key: str | None) -> Self:
        """Take what was given, else OPENBELL_URL and OPENBELL_API_KEY, else what `make run` wrote. Raises Failure."""
        url = url or os.environ.get("OPENBELL_URL")
        key = key or os.environ.get("OPENBELL_API_KEY")
        if not (url and key):
            demo = beside()
            url, key = url or demo.get("url"), key or demo.get("admin_key")
        if not (url and key):
            raise Failure(
                USAGE,
                "where is the gateway, and who are you? Start one here with `make run`, or set OPENBELL_URL and "
                "OPENBELL_API_KEY (an administrator's key), or pass --url and --key",
            )
        return cls(url, key)


def beside() -> Mapping[str, str]:
    """Return what a `make run` here wrote: below the current folder, else beside this code."""
    for folder in (Path.cwd(), Path(__file__).parents[1]):
        if (folder / DEMO).is_file():
            return json.loads((folder / DEMO).read_text())
    return {}


class Gateway:
    """Calls routes; every answer is JSON."""

    def __init__(self, place: Place, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(
            base_url=place.url,
            headers={"authorization": f"Bearer {place.key}"},
            timeout=30,
            trust_env=False,
            transport=transport,
        )
        self._url = place.url

    def __enter__(self) -> Self:
        """Open nothing yet: the first call does."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._http.close()

    def get(self, path: str, query: Mapping[str, Any] | None = None) -> Any:
        """Return the answer. Raises Failure."""
        return self._call("GET", path, params={k: v for k, v in (query or {}).items() if v is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer. Raises Failure."""
        given = None if body is None else {k: v for k, v in body.items() if v is not None}
        return self._call("POST", path, json=given, headers={"idempotency-key": str(uuid.uuid4())})

    def _call(self, method: str, path: str, **options: Any) -> Any:
        try:
            answer = self._send(method, path, **options)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise Failure(UNREACHABLE, f"{self._url} does not answer: {str(error) or type(error).__name__}") from error
        try:
            body = answer.json()
        except ValueError as error:
            raise Failure(UNREACHABLE, f"{self._url}{path} is no gateway: HTTP {answer.status_code}") from error
        if answer.is_success:
            return body
        raise Failure(REFUSED, _reason(answer, body))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        for _ in range(ATTEMPTS - 1):
            try:
                return self._http.request(method, path, **options)
            except httpx.TransportError:
                continue
        return self._http.request(method, path, **options)


def _reason(answer: httpx.Response, body: Any) -> str:
    error = body.get("error", {}) if isinstance(body, dict) else {}
    lines = [f"{error.get('code', f'HTTP {answer.status_code}')}: {error.get('message', answer.reason_phrase)}"]
    details = error.get("details")
    problems = details.get("problems") if isinstance(details, dict) else details
    lines += [f"  {json.dumps(one)}" for one in problems or ()]
    lines.append(f"  request {error.get('request_id') or answer.headers.get('x-request-id', 'unknown')}")
    return "\n".join(lines)
