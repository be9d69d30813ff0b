"""How fast we may ask: a token bucket that only decides; the caller waits."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(slots=True)
class TokenBucket:
    """At most `rate_per_s` requests a second in the long run, `burst` at once."""

    rate_per_s: float
    burst: float
    tokens: float = 0.0
    at: datetime | None = None

    def reserve(self, now: datetime) -> float:
        """Take one token, on credit if need be, and return how many seconds to wait before using it.

        Callers are served in the order in which they ask. A clock that goes back earns nothing.
        """
        if self.at is None:
            self.tokens = self.burst
        else:
            earned = max((now - self.at).total_seconds(), 0.0) * self.rate_per_s
            self.tokens = min(self.burst, self.tokens + earned)
        self.at = now if self.at is None else max(now, self.at)
        self.tokens -= 1.0
        return max(-self.tokens / self.rate_per_s, 0.0)
