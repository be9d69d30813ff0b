"""What becomes of a row after an attempt. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from shared.errors import OpenbellError, Permanent, Transient

OnUnknown = Literal["resend", "look_up", "leave"]
Status = Literal["pending", "done", "failed", "unknown", "suppressed", "digested"]


class OutcomeUnknown(OpenbellError):
    """The effect may or may not have happened."""

    code = "OUTCOME_UNKNOWN"


class Withdrawn(Permanent):
    """The effect is not wanted any more."""

    code = "WITHDRAWN"

    def __init__(self, message: str = "", /, *, end: Literal["suppressed", "digested"] = "suppressed") -> None:
        super().__init__(message)
        self.end: Literal["suppressed", "digested"] = end


class Busy(Transient):
    """The destination asks to be left alone for a while."""

    code = "BUSY"

    def __init__(self, message: str = "", /, *, retry_after_s: float, everyone: bool = False) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.everyone = everyone


@dataclass(frozen=True, slots=True)
class Policy:
    """How a kind of effect is claimed and tried again.

    Waits grow from `base_s` by doubling up to `cap_s`, each drawn from its upper half. A row that has had
    `max_attempts` attempts, or is `max_age_s` old, is not tried again.

    Many short effects go faster when `ahead` more rows than are performed at once are claimed and prepared before a
    place is free, and the outcomes of up to `together` rows are recorded in one transaction. That is for rows whose
    `settled` locks nothing that belongs to others, for whoever comes second waits for the whole transaction.
    """

    concurrency: int = 16
    ahead: int = 0
    together: int = 1
    lease_s: float = 30.0
    poll_s: float = 5.0  # how often a worker looks that nobody wakes: for what other processes left
    linger_s: float = 0.05  # how long a busy worker waits for more rows to claim at once
    base_s: float = 1.0
    cap_s: float = 300.0
    max_attempts: int = 8
    max_age_s: float = 86_400.0
    stop_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a row after an attempt."""

    status: Status
    due_at: datetime
    attempts: int
    uncertain: bool
    reason: str
    unknown: bool = False

    @property
    def final(self) -> bool:
        """Whether the row has reached its end."""
        return self.status != "pending"


def backoff_s(policy: Policy, attempts: int, draw: float) -> float:
    """Return the wait after `attempts` attempts; `draw` is a random number in [0, 1)."""
    longest = min(policy.cap_s, policy.base_s * 2.0 ** min(attempts - 1, 62))
    return longest * (0.5 + draw / 2)


def decide(
    policy: Policy,
    on_unknown: OnUnknown,
    error: Exception | None,
    *,
    attempts: int,
    uncertain: bool,
    created_at: datetime,
    now: datetime,
    draw: float,
) -> Decision:
    """Decide what becomes of a row whose attempt ended with `error`; `attempts` are those before this one."""
    if error is None:
        return Decision("done", now, attempts + 1, uncertain=False, reason="")
    reason = explain(error)
    if isinstance(error, Withdrawn):
        end = "unknown" if uncertain else error.end
        return Decision(end, now, attempts, uncertain=uncertain, reason=reason)
    if isinstance(error, Permanent):
        return Decision("failed", now, attempts + 1, uncertain=uncertain, reason=reason)
    unknown = not isinstance(error, Transient)
    tried = attempts if isinstance(error, Busy) else attempts + 1
    asked = (error.retry_after_s or 0.0) if isinstance(error, Transient) else 0.0
    due_at = now + timedelta(seconds=max(backoff_s(policy, max(tried, 1), draw), asked))
    if isinstance(error, Busy):
        due_at = now + timedelta(seconds=asked)
    spent = tried >= policy.max_attempts or due_at > created_at + timedelta(seconds=policy.max_age_s)
    if (unknown and on_unknown == "leave") or (spent and (unknown or uncertain)):
        return Decision("unknown", now, tried, uncertain=True, reason=reason, unknown=unknown)
    if spent:
        return Decision("failed", now, tried, uncertain=False, reason=f"gave up: {reason}")
    return Decision("pending", due_at, tried, uncertain=uncertain or unknown, reason=reason, unknown=unknown)


def explain(error: Exception) -> str:
    """Return a reason fit for the record: our own errors speak, foreign ones may carry secrets."""
    return error.message if isinstance(error, OpenbellError) else f"unexpected {type(error).__name__}"
