"""What the brokerage service needs of a venue. Each venue is one file in adapters/, and has a stand-in in the tests.

How a call at a venue ends: it returns what the venue said; shared.errors' `Transient` means that it was certainly not
carried out, try again (`Busy` when the venue wants to be left alone); shared.work's `OutcomeUnknown` that it may have
been carried out (a timeout after the request went out, a 5xx): an order is then looked up before anything is repeated;
`VenueRefused` that our credentials or the account do not allow it. That a venue refuses an order is no error but a
report. Adapters never repeat a write by themselves.

What comes from a venue is Decimal from the text that it sent, never from a float; times are aware.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Protocol, runtime_checkable
from uuid import UUID

from services.broker.domain.checks import Capabilities, TradeRules
from services.broker.domain.instruments import Instrument
from services.broker.domain.oauth import Granted, OAuthVenue
from services.broker.domain.orders import Order, Report
from services.broker.domain.positions import PositionFact
from services.broker.domain.risk import Mode, Quote
from shared.errors import Permanent


class VenueRefused(Permanent):
    """The venue does not take our credentials, or this account may not do that."""

    code = "VENUE_REFUSED"


@dataclass(frozen=True, slots=True)
class Account:
    """One account at one venue. `reference` is the venue's own name of it, empty where its credentials say which."""

    id: UUID
    user_id: UUID
    venue: str
    mode: Mode
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """What a venue tells of one order. `order_id` is the client order id: ours."""

    order_id: UUID
    report: Report


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened at a venue since some moment.

    `orders` are all of ours that work or have changed since, each as a look-up would tell it, executions included.
    `facts` moved positions without an order of ours: splits, expiries, exercises, assignments, fees told apart, and
    fills of orders that somebody placed elsewhere (their order_id is made of the venue's order id).
    """

    orders: Sequence[Update]
    facts: Sequence[PositionFact] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """What a venue says is held: above zero long, below zero short."""

    instrument: Instrument
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class Balance:
    """Money at a venue, in `currency`. `cash` is settled or not, without what is held."""

    cash: Decimal
    buying_power: Decimal
    currency: str = "USD"


class Venue(Protocol):
    """One account at one venue."""

    capabilities: Capabilities
    knows_ids: bool
    """Whether the venue refuses a client order id that it has seen: then a submit may be repeated after a look-up."""

    async def rules(self, instruments: Collection[Instrument]) -> Mapping[str, TradeRules]:
        """Return the steps of instruments by their key; what is left out the venue does not know."""
        ...

    async def submit(self, order: Order) -> Report:
        """Place an order under its id: `accepted`, `filled` or `rejected` (with the venue's reason).

        Where the venue says that it has seen the id, raises OutcomeUnknown: a look-up tells what it is.
        """
        ...

    async def cancel(self, order: Order) -> Report | None:
        """Cancel a working order.

        None when the venue took the wish (the stream or a look-up tells the end), else `canceled` or `cancel_rejected`,
        or how the order had ended already.
        """
        ...

    async def replace(self, order: Order, by: Order) -> Report | None:
        """Put `by` in the place of a working order.

        None when the venue took the wish, else of the old order `replaced` (with replaced_by) or `replace_rejected`.
        """
        ...

    async def look_up(self, order: Order) -> Report:
        """Return how the order stands, by its id: `looked_up`, all its executions in it; `not_found`, too."""
        ...

    async def changes(self, since: datetime) -> Changes:
        """Return what happened since then, all pages of it."""
        ...

    async def positions(self) -> Sequence[Held]:
        """Return all that is held."""
        ...

    async def balance(self) -> Balance:
        """Return the money."""
        ...

    def stream(self) -> AbstractAsyncContextManager[AsyncIterator[Update]]:
        """Listen: inside the block nothing that happens is missed. What happened before is asked for with `changes`.

        The iterator raises Transient when the line is lost; one that has fallen silent is noticed within a minute.
        """
        ...

    async def close(self) -> None:
        """Give up connections."""


@runtime_checkable
class Quoting(Protocol):
    """A venue that tells quotes: of the classes that are `quotes` of its capabilities."""

    async def quotes(self, instruments: Collection[Instrument]) -> Mapping[str, Quote]:
        """Return bid and ask as they are now by the instrument's key; what has none is left out."""
        ...


class GrantRefused(VenueRefused):
    """The venue does not take this authorisation, or takes it no more: connect the account anew."""

    code = "OAUTH_GRANT_REFUSED"


class TokenEndpoint(Protocol):
    """Where a venue gives OAuth tokens."""

    async def ask(self, venue: OAuthVenue, grant: Mapping[str, str]) -> Granted:
        """Post a grant, once.

        Raises GrantRefused; Transient when it certainly was not taken; OutcomeUnknown when it may have been.
        """
        ...


class Adapter(Protocol):
    """A kind of venue."""

    @property
    def name(self) -> str:
        """How accounts name it."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it takes."""
        ...

    @property
    def secrets(self) -> frozenset[str]:
        """The names of what an account's credentials consist of."""
        ...

    def open(self, account: Account, secrets: Mapping[str, str]) -> Venue:
        """Return an account's venue; nothing is asked yet. Raises VenueRefused for credentials of the wrong shape."""
        ...
