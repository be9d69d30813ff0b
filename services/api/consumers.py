"""Door 1: what the gateway listens to."""

from services.api.service import AuditLog, Plans, Watchlists
from shared.contracts.alerts import AlertRaised
from shared.contracts.api import ActionAudited
from shared.contracts.payment import SubscriptionChanged
from shared.messaging.consumer import Consumer


def tables(audit: AuditLog, watchlists: Watchlists, plans: Plans) -> list[Consumer]:
    """Return the consumers of the gateway."""
    audits = Consumer("api.audit")
    audits.on_batch(ActionAudited, audit.record)
    alerts = Consumer("api.alerts")
    alerts.on_batch(AlertRaised, watchlists.record_alerts)
    subscriptions = Consumer("api.subscriptions")
    subscriptions.on_batch(SubscriptionChanged, plans.record)
    return [audits, alerts, subscriptions]
