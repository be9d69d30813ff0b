"""Rate limits that replicas share through one Postgres row a caller, without a statement a request.

Each caller has a token bucket: `quota` tokens that refill evenly over `window_s`. The row in `rate_buckets` is the
bucket; a replica takes a chunk of tokens from it and spends them from memory. The chunk begins at one token and
doubles while a caller keeps coming back, up to a twentieth of the quota; a pause gives back what was not spent.

What would surprise you: with n replicas the limit is exact over the row but a caller may be refused on one replica
while another still holds a chunk for them: at most n times a twentieth of the quota is misplaced, never exceeded.
"""

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Final

from sqlalchemy import text

from shared.clock import Clock
from shared.db import Database
from shared.errors import RateLimited

CALLERS: Final = 20_000
PAUSE_S: Final = 5.0
SHARE: Final = 20

# Fills the bucket for the time that passed and what is given back, then takes up to a chunk of whole tokens.
_TAKE: Final = text(
    """
    insert into rate_buckets as b (key, tokens, taken, updated_at)
    values (:key, cast(:quota as double precision) - :chunk, :chunk, :now)
    on conflict (key) do update set
        (tokens, taken, updated_at) = (
            select filled - least(cast(:chunk as double precision), floor(filled)),
                   least(cast(:chunk as double precision), floor(filled)),
                   greatest(b.updated_at, :now)
            from (select least(
                cast(:quota as double precision),
                b.tokens + :back
                    + greatest(0, extract(epoch from cast(:now as timestamptz) - b.updated_at)) * :quota / :window
            ) as filled) f
        )
    returning tokens, taken
    """
)


@dataclass(frozen=True)
class Policy:
    """`quota` requests in `window_s` seconds, evenly refilled. `name` is told to the caller."""

    name: str
    quota: int
    window_s: int

    @cached_property
    def header(self) -> bytes:
        """The RateLimit-Policy field of the IETF draft (form of draft 10)."""
        return f'"{self.name}";q={self.quota};w={self.window_s}'.encode()


@dataclass(slots=True)
class _Bucket:
    held: float = 0.0
    chunk: float = 1.0
    remote: float = 0.0  # in the row when it was last read
    at: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Limiter:
    """Spends tokens for callers."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()

    async def spend(self, policy: Policy, caller: str) -> bytes:
        """Spend one token; return the RateLimit field. Raises RateLimited with the time of the next token."""
        bucket = self._bucket(policy, caller)
        now = self._clock()
        seconds = now.timestamp()
        if _wants(bucket, policy, seconds):
            async with bucket.lock:
                if _wants(bucket, policy, seconds):
                    await self._refill(policy, caller, bucket, now)
        if bucket.held < 1:
            raise _refusal(policy, bucket.remote)
        bucket.held -= 1
        return field_value(policy, bucket.held + bucket.remote)

    def check(self, policy: Policy, caller: str) -> None:
        """Raise RateLimited when this replica knows that the caller has no tokens left; spend none."""
        bucket = self._buckets.get((policy.name, caller))
        if bucket is not None and bucket.held < 1 and not _wants(bucket, policy, self._clock().timestamp()):
            raise _refusal(policy, bucket.remote)

    def _bucket(self, policy: Policy, caller: str) -> _Bucket:
        key = (policy.name, caller)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket()
            if len(self._buckets) > CALLERS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

    async def _refill(self, policy: Policy, caller: str, bucket: _Bucket, now: datetime) -> None:
        seconds = now.timestamp()
        back = 0.0
        if seconds - bucket.at > PAUSE_S:
            back, bucket.held, bucket.chunk = bucket.held, 0.0, 1.0
        else:
            bucket.chunk = float(min(max(1, policy.quota // SHARE), bucket.chunk * 2))
        async with self._db.read() as tx:
            row = await tx.fetchrow(
                _TAKE,
                key=f"{policy.name}/{caller}",
                quota=float(policy.quota),
                window=float(policy.window_s),
                chunk=bucket.chunk,
                back=back,
                now=now,
            )
        if row is not None:
            bucket.held += row["taken"]
            bucket.remote = row["tokens"]
            bucket.at = seconds


def _wants(bucket: _Bucket, policy: Policy, seconds: float) -> bool:
    """Whether asking the row makes sense: a caller known to be out of tokens costs no statement."""
    passed = seconds - bucket.at
    if passed > PAUSE_S:
        return True
    return bucket.held < 1 and bucket.remote + passed * policy.quota / policy.window_s >= 1


def _refusal(policy: Policy, left: float) -> RateLimited:
    wait_s = max(1.0, (1 - left) * policy.window_s / policy.quota)
    return RateLimited(retry_after_s=wait_s, policy=policy.name, quota=policy.quota, window_s=policy.window_s)


def field_value(policy: Policy, left: float) -> bytes:
    """Return the RateLimit field: how many requests are left, and when the bucket will be full again."""
    left = max(0.0, left)
    full_in_s = math.ceil((policy.quota - left) * policy.window_s / policy.quota)
    return f'"{policy.name}";r={int(left)};t={full_in_s}'.encode()
