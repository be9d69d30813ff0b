"""The exception tree, split by what the caller would do next.

    OpenbellError
    ├── Transient          try again later, as it is
    │   └── NotYet         a prerequisite event has not arrived; waits longer
    └── Permanent          trying again cannot help
        ├── Invalid        the input is wrong                       422
        ├── Unauthenticated  we do not know who calls               401
        ├── Forbidden      we know, and the answer is no            403
        ├── PlanRequired   we know, and it is not paid for          402
        ├── NotFound       there is no such thing for this caller   404
        ├── Conflict       the state does not allow it              409
        ├── TooLarge       the input is over a stated limit         413
        └── RateLimited    too many, come back later                429

A class's docstring is its default message. `code` is stable: clients and dashboards may rely on it.
Adapters translate other people's errors into these at their edge, from status codes and types.
"""

from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import UUID


class OpenbellError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    status: ClassVar[int] = 500

    def __init__(self, message: str = "", /, **details: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.details: Mapping[str, Any] = details
        super().__init__(self.message)


class Transient(OpenbellError):
    """It did not work this time; the same call may work later."""

    code = "TEMPORARILY_UNAVAILABLE"
    status = 503

    def __init__(self, message: str = "", /, *, retry_after_s: float | None = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after_s = retry_after_s


class NotYet(Transient):
    """A prerequisite has not arrived yet."""

    code = "NOT_YET"


class Permanent(OpenbellError):
    """It cannot work as it is."""

    code = "REFUSED"
    status = 400


class Invalid(Permanent):
    """The input is not valid."""

    code = "VALIDATION_ERROR"
    status = 422


class Unauthenticated(Permanent):
    """Say who you are: send an API key or a token."""

    code = "UNAUTHENTICATED"
    status = 401


class Forbidden(Permanent):
    """You may not do this."""

    code = "FORBIDDEN"
    status = 403


class PlanRequired(Permanent):
    """Your plan does not include this."""

    code = "PLAN_REQUIRED"
    status = 402


class NotFound(Permanent):
    """There is no such thing."""

    code = "NOT_FOUND"
    status = 404


class Conflict(Permanent):
    """The current state does not allow this."""

    code = "CONFLICT"
    status = 409


class TooLarge(Permanent):
    """The input is larger than the stated limit."""

    code = "TOO_LARGE"
    status = 413


class RateLimited(Permanent):
    """Too many requests; come back after the stated time."""

    code = "RATE_LIMITED"
    status = 429

    def __init__(self, message: str = "", /, *, retry_after_s: float, **details: Any) -> None:
        super().__init__(message, **details)
        self.retry_after_s = retry_after_s


class SomeFailed(Exception):
    """A batch handler tells which of its events failed and why; the others run again without them.

    `failures` are errors by event id.
    """

    def __init__(self, failures: Mapping[UUID | None, Exception]) -> None:
        super().__init__(f"{len(failures)} events failed")
        self.failures = failures
