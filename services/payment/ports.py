"""What payment needs of others. Each has a real adapter, and a stand-in in the tests.

How a write to Stripe ends: it returns the object; `Transient` means that it was not carried out, try again;
`StripeRefused` that it never will be; shared.work's OutcomeUnknown that it may have been carried out; `FailedReplay`
that Stripe repeats the failure of an earlier attempt with the same key. A read returns, or raises Transient (Busy when
Stripe wants to be left alone) or StripeRefused.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Protocol

from services.payment.domain.crypto import Block, Transfer
from services.payment.domain.stripe import Hint
from shared.errors import NotFound, OpenbellError, Permanent, Transient

Json = Mapping[str, Any]


class NotConfigured(NotFound):
    """Openbell is not set up for this way of paying."""

    code = "PAYMENT_WAY_NOT_CONFIGURED"


class BadSignature(Permanent):
    """The signature is missing, or nobody whom we know made it for this body."""

    code = "BAD_SIGNATURE"


class SignatureExpired(Permanent):
    """The signature was made too long ago, or not yet."""

    code = "SIGNATURE_EXPIRED"


class BadWebhook(Permanent):
    """The body is signed, but it is no event."""

    code = "BAD_WEBHOOK"


class StripeRefused(Permanent):
    """Stripe refuses this."""

    code = "PAYMENT_REFUSED"

    def __init__(self, message: str = "", /, *, reason: str | None = None, param: str | None = None) -> None:
        super().__init__(message, reason=reason, param=param)
        self.reason = reason
        self.param = param


class NoSuchObject(StripeRefused):
    """Stripe does not know such an object."""

    code = "NOT_AT_STRIPE"
    status = 404


class FailedReplay(OpenbellError):
    """Stripe repeats the failure of an earlier attempt; the same key can never work again."""

    code = "FAILED_REPLAY"


class Webhooks(Protocol):
    """Tells Stripe's webhooks from anybody else's."""

    def read(self, body: bytes, signature: str | None, now: datetime) -> Hint:
        """Return what a webhook says. Raises BadSignature, SignatureExpired, BadWebhook."""
        ...


class RawStripe(Protocol):
    """Stripe's API v1, two verbs. Paths begin behind /v1/, objects are JSON as Stripe sends it."""

    async def read(self, path: str, params: Json | None = None) -> Json:
        """GET."""
        ...

    async def write(self, path: str, params: Json, *, key: str, method: str = "post") -> Json:
        """POST or DELETE, sent once: it is for the caller to know when a repetition is safe."""
        ...


class Stripe(Protocol):
    """Stripe, asked for what is true now."""

    async def fetch(self, kind: str, object_id: str) -> Json | None:
        """Return an object as it is now, with what its kind expands; None when it is gone, or was never there.

        A subscription that is past due says in `unpaid_since` when its first open invoice was made.
        """
        ...

    def list(self, kind: str, since: datetime | None = None) -> AsyncIterator[Json]:
        """Yield all objects of a kind, or those made since then, the newest first, with nothing expanded."""
        ...

    def undelivered(self, since: datetime) -> AsyncIterator[Json]:
        """Yield the events since then that Stripe could not deliver, the newest first."""
        ...

    async def close(self) -> None:
        """Give up the connections; another request opens new ones."""
        ...


class WrongChain(Permanent):
    """What answers is not the chain that is configured."""

    code = "WRONG_CHAIN"


class RateUnavailable(Transient):
    """The rate of this asset is not known at the moment; try again in a minute."""

    code = "RATE_UNAVAILABLE"


class ChainReader(Protocol):
    """Reads one chain. Everything raises Transient when the chain does not answer."""

    async def check(self) -> None:
        """Raise WrongChain when another chain answers."""
        ...

    async def head(self) -> Block:
        """Return the newest block."""
        ...

    async def hash_of(self, number: int) -> str | None:
        """Return the hash of the block that the chain has at a height now; None when it has none."""
        ...

    async def transfers(self, first: int, last: int, addresses: Collection[str]) -> Sequence[Transfer]:
        """Return what came to the addresses in these blocks, and what waits for a block where that can be known."""
        ...

    async def transaction(self, tx: str, addresses: Collection[str]) -> Sequence[Transfer] | None:
        """Return what a transaction brings to the addresses; None when the chain does not know it."""
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...


@dataclass(frozen=True, slots=True)
class Rate:
    """USD for one unit of an asset."""

    usd: Decimal
    source: str
    at: datetime


class Rates(Protocol):
    """What assets are worth."""

    async def rate(self, symbol: str) -> Rate:
        """Return the rate of an asset. Raises Transient when it cannot be known now."""
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...
