"""Door 1, Kafka: what is handled, and by what."""

from services.payment.service.customers import Customers
from services.payment.service.refresh import Refresh
from shared.contracts.api import UserSignedUp
from shared.contracts.payment import WebhookReceived
from shared.messaging.consumer import Consumer


def tables(refresh: Refresh, customers: Customers) -> tuple[Consumer, ...]:
    """Return the service's consumers."""
    webhooks = Consumer("payment.webhooks")
    webhooks.on_batch(WebhookReceived, refresh.note)

    users = Consumer("payment.customers")
    users.on(UserSignedUp, customers.signed_up)
    return webhooks, users
