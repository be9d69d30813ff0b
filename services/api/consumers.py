"""Door 1: what the gateway listens to."""

from services.api.service import AuditLog, Watchlists
from shared.contracts.alerts import AlertRaised
from shared.contracts.api import ActionAudited
from shared.messaging.consumer import Consumer


def tables(audit: AuditLog, watchlists: Watchlists) -> list[Consumer]:
    """Return the consumers of the gateway."""
    audits = Consumer("api.audit")
    audits.on_batch(ActionAudited, audit.record)
    alerts = Consumer("api.alerts")
    alerts.on_batch(AlertRaised, watchlists.record_alerts)
    return [audits, alerts]
