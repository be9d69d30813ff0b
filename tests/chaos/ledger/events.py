"""The ledger's events, and the plan of what is wrong with a share of them.

A transfer is booked on the payer's key by one consumer; the credit that follows from it travels through the outbox and
is booked on the payee's key by another. The totals balance only if every hop takes effect exactly once.
"""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import ClassVar, Final, Literal

from shared.contracts.base import Event
from shared.contracts.topics import Topic
from shared.messaging.consumer import Policy
from shared.messaging.record import Headers, headers_of

TRANSFERS: Final = Topic("ledger.transfers", partitions=6)
CREDITS: Final = Topic("ledger.credits", partitions=6)
DEBIT_CONSUMER: Final = "ledger.debits"
CREDIT_CONSUMER: Final = "ledger.credits"

POLICY: Final = Policy(delays_s=(0.5, 1.0, 2.0, 4.0), probe_every_s=2.0)
NEVER: Final = 99
"""An event that fails so often dies of it."""
ACCOUNTS: Final = 600
PAYOUT_EVERY: Final = 10
"""Of so many credits one is paid out: an effect on the outside."""

Kind = Literal["fine", "transient", "exhausted", "permanent", "body", "fields", "id", "typeless", "header", "tombstone"]
POISON: Final[tuple[Kind, ...]] = ("body", "fields", "id", "typeless", "header", "tombstone")
DEAD: Final[dict[Kind, str]] = {
    "exhausted": "TEMPORARILY_UNAVAILABLE",
    "permanent": "REFUSED",
    "body": "UNDECODABLE",
    "fields": "UNDECODABLE",
    "id": "BAD_ENVELOPE",
    "typeless": "NO_TYPE",
    "tombstone": "UNDECODABLE",
}
"""The kinds that must end dead, and with which code. (A header that is no UTF-8 is odd, not wrong.)"""
NO_IDENTITY: Final[frozenset[Kind]] = frozenset({"id", "typeless"})


class Transferred(Event):
    """Money left an account for another. `fails` and `permanent` say how booking it goes wrong."""

    type: ClassVar[str] = "ledger.account.transferred.v1"
    topic: ClassVar[Topic] = TRANSFERS

    payer: str
    payee: str
    amount: int
    seq: int
    fails: int = 0
    permanent: bool = False
    credit_fails: int = 0
    credit_permanent: bool = False
    slow_ms: int = 0

    @property
    def key(self) -> str:
        return self.payer


class Credited(Event):
    """Money reached an account; follows from `Transferred`."""

    type: ClassVar[str] = "ledger.account.credited.v1"
    topic: ClassVar[Topic] = CREDITS

    payer: str
    payee: str
    amount: int
    seq: int
    fails: int = 0
    permanent: bool = False

    @property
    def key(self) -> str:
        return self.payee


@dataclass(frozen=True, slots=True)
class Message:
    """One record to send. `id` is the driver's name for it, which a broken record may not carry."""

    id: uuid.UUID
    kind: Kind
    credit: Kind
    key: bytes
    value: bytes | None
    headers: Headers
    amount: int


class Source:
    """Makes messages from a seed; ids and amounts are the same in each run of it, times are not."""

    def __init__(self, seed: int) -> None:
        self._random = Random(f"{seed}/events")
        self._made = 0

    def make(self) -> Message:
        """Return the next message."""
        draw = self._random
        kind = _kind(draw.random(), draw)
        credit = _kind(draw.random(), draw, poison=False)
        payer, payee = draw.sample(range(ACCOUNTS), 2)
        self._made += 1
        event = Transferred(
            id=uuid.UUID(int=draw.getrandbits(128), version=4),
            time=datetime.now(UTC),
            payer=f"account-{payer}",
            payee=f"account-{payee}",
            amount=draw.randint(1, 1000),
            seq=self._made,
            fails=_fails(kind, draw),
            permanent=kind == "permanent",
            credit_fails=_fails(credit, draw),
            credit_permanent=credit == "permanent",
            slow_ms=50 if draw.random() < 0.002 else 0,
        )
        value, headers = _spoil(kind, event)
        return Message(event.id, kind, credit, event.key.encode(), value, headers, event.amount)


def _kind(share: float, draw: Random, *, poison: bool = True) -> Kind:
    if share < 0.005:
        return "transient"
    if share < 0.0055:
        return "exhausted"
    if share < 0.006:
        return "permanent"
    if share < 0.007 and poison:
        return draw.choice(POISON)
    return "fine"


def _fails(kind: Kind, draw: Random) -> int:
    return {"transient": draw.randint(1, 3), "exhausted": NEVER}.get(kind, 0)


def _spoil(kind: Kind, event: Transferred) -> tuple[bytes | None, Headers]:  # noqa: PLR0911 - a line a kind
    value, headers = event.to_bytes(), headers_of(event, "/chaos")
    match kind:
        case "body":
            return b"\xff{" + value, headers
        case "fields":
            return b'{"payer": 1}', headers
        case "tombstone":
            return None, headers
        case "id":
            return value, tuple((name, b"x" if name == b"ce_id" else it) for name, it in headers) + _mark(event)
        case "typeless":
            return value, tuple((name, it) for name, it in headers if name != b"ce_type") + _mark(event)
        case "header":
            return value, (*headers, (b"note", b"\xff\xfe"))
        case _:
            return value, headers


def _mark(event: Event) -> Headers:
    return ((b"driver-id", str(event.id).encode()),)
