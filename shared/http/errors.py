"""Every answer that is not a success, in one shape.

    {"error": {"code", "message", "details", "timestamp", "request_id"}}

What would surprise you: an unexpected exception's text never leaves the process; it is in the log under the request id.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, SerializationException, ValidationException
from litestar.status_codes import HTTP_500_INTERNAL_SERVER_ERROR

from shared.clock import Clock
from shared.db import DatabaseUnavailable, is_rerun
from shared.errors import OpenbellError, RateLimited, Transient

_log = logging.getLogger(__name__)

RETRY_AFTER_S: Final = 1.0

_CODES: Final = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "FORBIDDEN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    413: "TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "VALIDATION_ERROR",
    429: "RATE_LIMITED",
}
_MESSAGES: Final = {
    404: "There is nothing at this address.",
    405: "This address does not take this method.",
    413: "The body is larger than this service takes.",
}


class Failure(msgspec.Struct, frozen=True):
    """An error on its way out. `details` is a mapping, or the list of what is wrong with the input."""

    status: int
    code: str
    message: str
    details: Any = None
    headers: Mapping[str, str] = {}

    def body(self, request_id: str, now: datetime) -> bytes:
        """Return the JSON of the answer."""
        return msgspec.json.encode(
            {
                "error": {
                    "code": self.code,
                    "message": self.message,
                    "details": {} if self.details is None else self.details,
                    "timestamp": now.astimezone(UTC),
                    "request_id": request_id,
                }
            },
            enc_hook=str,
        )


def failure_of(error: Exception) -> Failure:
    """Return what the caller is told about `error`."""
    if is_rerun(error):
        error = DatabaseUnavailable(retry_after_s=RETRY_AFTER_S)
    if isinstance(error, OpenbellError):
        return _ours(error)
    if isinstance(error, ValidationException):
        return Failure(422, "VALIDATION_ERROR", "The input is not valid.", _problems(error.extra))
    if isinstance(error, HTTPException):
        return _litestars(error)
    return Failure(500, "INTERNAL_ERROR", "Something went wrong on our side.")


def _ours(error: OpenbellError) -> Failure:
    headers: dict[str, str] = {}
    if isinstance(error, Transient | RateLimited):
        wait = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
        headers["retry-after"] = str(max(1, round(wait + 0.499)))
    if error.status == 401:  # noqa: PLR2004 - RFC 9110: a 401 names the scheme
        headers["www-authenticate"] = "Bearer"
    if error.status == HTTP_500_INTERNAL_SERVER_ERROR:
        return Failure(500, error.code, "Something went wrong on our side.")
    details = error.details.get("problems") if list(error.details) == ["problems"] else dict(error.details)
    return Failure(error.status, error.code, error.message, details, headers)


def _litestars(error: HTTPException) -> Failure:
    status = error.status_code
    if status >= HTTP_500_INTERNAL_SERVER_ERROR:
        return Failure(500, "INTERNAL_ERROR", "Something went wrong on our side.")
    if isinstance(error.__cause__, SerializationException):
        return Failure(400, "INVALID_JSON", "The body is not JSON.")
    headers = {key.lower(): value for key, value in (error.headers or {}).items() if key.lower() == "allow"}
    message = _MESSAGES.get(status) or error.detail
    return Failure(status, _CODES.get(status, "REFUSED"), message, headers=headers)


def _problems(extra: Any) -> list[dict[str, str]]:
    if not isinstance(extra, list):
        return []
    problems: list[dict[str, str]] = []
    for item in cast("list[Any]", extra):
        problem = cast("dict[str, Any]", item) if isinstance(item, dict) else {"message": str(item)}
        told = {"message": str(problem.get("message", ""))}
        if "key" in problem:
            told["path"] = str(problem["key"])
        if "source" in problem:
            told["source"] = str(getattr(problem["source"], "value", problem["source"]))
        problems.append(told)
    return problems


class ErrorAnswers:
    """Turns exceptions into answers, and logs those that nobody expected."""

    def __init__(self, service: str, clock: Clock) -> None:
        self._service = service
        self._clock = clock

    def answer(self, request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        """Return the answer; Litestar calls this for whatever a route raises."""
        exchange = cast("dict[str, Any]", request.scope).get("openbell")
        request_id: str = getattr(exchange, "request_id", "")
        failure = failure_of(error)
        if failure.status == HTTP_500_INTERNAL_SERVER_ERROR and not isinstance(error, HTTPException):
            extra = {"service": self._service, "request_id": request_id, "path": request.scope["path"]}
            _log.error("http_failed", exc_info=error, extra=extra)
        return Response(
            failure.body(request_id, self._clock()),
            status_code=failure.status,
            headers=dict(failure.headers),
            media_type="application/json",
        )

    def plain(self, failure: Failure, request_id: str) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """Return (status, headers, body) for use outside Litestar."""
        body = failure.body(request_id, self._clock())
        headers = [(key.encode(), value.encode()) for key, value in failure.headers.items()]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        return failure.status, headers, body
