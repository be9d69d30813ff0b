"""Door 1, Kafka: what is handled, and by what."""

from services.payment.service.refresh import Refresh
from shared.contracts.payment import WebhookReceived
from shared.messaging.consumer import Consumer


def tables(refresh: Refresh) -> tuple[Consumer, ...]:
    """Return the service's consumers."""
    webhooks = Consumer("payment.webhooks")
    webhooks.on_batch(WebhookReceived, refresh.note)
    return (webhooks,)
