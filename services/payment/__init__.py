"""payment: subscriptions that are always right, whoever takes the money: Stripe, a chain, or a person.

Owns     schema `payment`: customers, subscriptions, webhooks as they came, what Stripe says now, crypto invoices and
         receipts, the ledger
Reads    api.users (UserSignedUp), payment.webhooks (WebhookReceived)
Publishes payment.webhooks (WebhookReceived), payment.subscriptions (SubscriptionChanged), payment.payments
         (PaymentReceived, PaymentFailed, PaymentRefunded, PaymentDisputed, TrialEnding, CardExpiring, RenewalDue),
         api.audit (ActionAudited)
Serves   /pay: webhooks, checkout, portal, subscription, invoices, crypto invoices, the ledger's export

An event from Stripe is a hint: what Stripe says when it is asked is what counts.
"""

from typing import Final

from shared.contracts.api import ActionAudited, UserSignedUp
from shared.contracts.base import Event
from shared.contracts.payment import (
    CardExpiring,
    PaymentDisputed,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    RenewalDue,
    SubscriptionChanged,
    TrialEnding,
    WebhookReceived,
)

OWNS: Final = "payment"
READS: Final[tuple[type[Event], ...]] = (UserSignedUp, WebhookReceived)
PUBLISHES: Final[tuple[type[Event], ...]] = (
    WebhookReceived,
    SubscriptionChanged,
    PaymentReceived,
    PaymentFailed,
    PaymentRefunded,
    PaymentDisputed,
    TrialEnding,
    CardExpiring,
    RenewalDue,
    ActionAudited,
)
