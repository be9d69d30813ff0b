"""Door 1: what the gateway listens to."""

from services.api.service import AuditLog, Feed, Plans, Watchlists
from shared.contracts.alerts import (
    AlertRaised,
    AlertUpdated,
    DeliverySettled,
    DeliverySettledV1,
    NoticeDeliverySettled,
    NoticeRaised,
)
from shared.contracts.api import ActionAudited
from shared.contracts.payment import SubscriptionChanged
from shared.messaging.consumer import Consumer


def tables(audit: AuditLog, watchlists: Watchlists, plans: Plans, feed: Feed) -> list[Consumer]:
    """Return the consumers of the gateway."""
    audits = Consumer("api.audit")
    audits.on_batch(ActionAudited, audit.record)
    alerts = Consumer("api.alerts")
    alerts.on_batch(AlertRaised, watchlists.record_alerts)
    subscriptions = Consumer("api.subscriptions")
    subscriptions.on_batch(SubscriptionChanged, plans.record)
    feeds = Consumer("api.feed")
    for event in (AlertRaised, AlertUpdated, NoticeRaised, DeliverySettled, DeliverySettledV1, NoticeDeliverySettled):
        feeds.on_batch(event, feed.record)
    return [audits, alerts, subscriptions, feeds]
