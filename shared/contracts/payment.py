"""What the payment service tells: webhooks that came, subscriptions as they are, and what happened to money."""

from decimal import Decimal
from typing import ClassVar, Literal
from uuid import UUID

from pydantic import AwareDatetime

from shared.contracts.base import Event
from shared.contracts.topics import PAYMENTS, SUBSCRIPTIONS, WEBHOOKS, Topic

Provider = Literal["stripe", "crypto", "manual"]
SubscriptionStatus = Literal["trialing", "active", "past_due", "paused", "canceled", "expired"]


class WebhookReceived(Event):
    """A provider says that something of its own changed: a hint, the raw body lies in payment's schema."""

    type: ClassVar[str] = "payment.webhook.received.v1"
    topic: ClassVar[Topic] = WEBHOOKS

    provider: Literal["stripe"]
    event_id: str
    event_type: str
    object_kind: str | None  # the provider's name of what changed: "subscription", "invoice"
    object_id: str | None
    customer: str | None  # the provider's id of whom it concerns
    livemode: bool
    created: AwareDatetime

    @property
    def key(self) -> str:
        """The provider's customer, else the object, else the event."""
        return self.customer or self.object_id or self.event_id


class _UserFact(Event):
    user_id: UUID

    @property
    def key(self) -> str:
        """The user."""
        return str(self.user_id)


class SubscriptionChanged(_UserFact):
    """A user's subscription as it is now, all of it. A lower version than one seen before is old news."""

    type: ClassVar[str] = "payment.subscription.changed.v1"
    topic: ClassVar[Topic] = SUBSCRIPTIONS

    subscription_id: UUID
    version: int
    provider: Provider
    plan: str
    status: SubscriptionStatus
    entitlements: tuple[str, ...]  # what the user may use now; empty when access has ended
    entitled_until: (
        AwareDatetime | None
    )  # after it `entitlements` no longer hold, whatever is heard; None: no end known
    current_period_end: AwareDatetime | None
    cancel_at_period_end: bool = False


class _PaymentFact(_UserFact):
    topic: ClassVar[Topic] = PAYMENTS

    provider: Provider
    reference: str  # the provider's object: an invoice, a charge, a transaction
    plan: str | None = None


class PaymentReceived(_PaymentFact):
    """Money came in: a receipt. `renewal` tells a later period's payment from the first."""

    type: ClassVar[str] = "payment.payment.received.v1"

    amount: Decimal  # in units of the currency
    currency: str  # ISO 4217 in capitals, or the coin's symbol
    renewal: bool
    receipt_url: str | None = None


class PaymentFailed(_PaymentFact):
    """A payment did not work, or waits for the customer to do something."""

    type: ClassVar[str] = "payment.payment.failed.v1"

    amount: Decimal
    currency: str
    reason: str
    action_required: bool = False
    next_attempt_at: AwareDatetime | None = None
    pay_url: str | None = None


class PaymentRefunded(_PaymentFact):
    """Money went back to the customer."""

    type: ClassVar[str] = "payment.payment.refunded.v1"

    amount: Decimal
    currency: str


class PaymentDisputed(_PaymentFact):
    """A customer's bank disputes a payment, or has decided."""

    type: ClassVar[str] = "payment.payment.disputed.v1"

    amount: Decimal
    currency: str
    status: Literal["opened", "won", "lost"]


class TrialEnding(_PaymentFact):
    """A trial ends soon."""

    type: ClassVar[str] = "payment.trial.ending.v1"

    ends_at: AwareDatetime


class CardExpiring(_PaymentFact):
    """The card on file expires soon."""

    type: ClassVar[str] = "payment.card.expiring.v1"

    brand: str
    last4: str
    expires: str  # "2027-03"


class RenewalDue(_PaymentFact):
    """A period that nobody pays for by itself (crypto, manual) ends soon, or has ended."""

    type: ClassVar[str] = "payment.renewal.due.v1"

    due_at: AwareDatetime
    days_left: int  # 7, 3, 1; then 0 and less, while dunning
    amount: Decimal
    currency: str
    pay_url: str | None = None
    next_step_at: AwareDatetime | None = None  # when the next notice comes; after the last, when all is over
    last: bool = False  # no notice comes after this one
