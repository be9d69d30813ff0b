"""The gateway: the one address that people and programs call.

Owns      users, their settings, API keys, watchlists, what their plans allow, the audit log, rate limits, what
          users were told in the last day and tickets to hear of it (schema `api`).
Reads     api.audit (the audit log), alerts.alerts and alerts.deliveries (when a stock last alerted, and what users
          are told on WebSockets), payment.subscriptions (what a user may use).
Publishes api.users, api.watchlists, api.audit.
Forwards  every other public path to the service that owns it, with an identity that it signed.
"""

from typing import Final

from shared.contracts.alerts import (
    AlertRaised,
    AlertUpdated,
    DeliverySettled,
    DeliverySettledV1,
    NoticeDeliverySettled,
    NoticeRaised,
)
from shared.contracts.api import (
    ActionAudited,
    StockAdded,
    StockRemoved,
    StockSettingsChanged,
    UserOnboarded,
    UserSettingsChanged,
    UserSignedUp,
)
from shared.contracts.base import Event
from shared.contracts.payment import SubscriptionChanged

OWNS: Final = "api"
READS: Final[tuple[type[Event], ...]] = (
    ActionAudited,
    AlertRaised,
    AlertUpdated,
    NoticeRaised,
    DeliverySettled,
    DeliverySettledV1,
    NoticeDeliverySettled,
    SubscriptionChanged,
)
PUBLISHES: Final[tuple[type[Event], ...]] = (
    UserSignedUp,
    UserOnboarded,
    UserSettingsChanged,
    StockAdded,
    StockRemoved,
    StockSettingsChanged,
    ActionAudited,
)
