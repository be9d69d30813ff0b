"""alerts: turns activity into alerts for the users whose watchlist or rule matches, and tells them.

Owns     schema `alerts`: users and watchlists as the gateway tells them, rules, channels (sealed) and the mails that
         confirm them, contracts and quotes of the session, events of 30 days, alerts, notices, deliveries of both,
         what of them waits in groups or for somebody to acknowledge it
Reads    detector.activity (ActivityDetected), api.users (UserSignedUp, UserSettingsChanged),
         api.watchlists (StockAdded, StockSettingsChanged, StockRemoved), payment.payments (PaymentReceived,
         PaymentFailed, PaymentRefunded, PaymentDisputed, TrialEnding, CardExpiring, RenewalDue),
         payment.subscriptions (SubscriptionChanged),
         broker.orders (OrderFilled, OrderRejected, OrderFlagged), broker.positions (PositionsDrifted, PositionChanged),
         data.quotes (QuoteTaken), detector.leaderboard (LeaderboardChanged)
Publishes alerts.alerts (AlertRaised, AlertUpdated, NoticeRaised), alerts.deliveries (DeliverySettled,
         NoticeDeliverySettled), api.audit (ActionAudited)
Serves   /api/alerts/{user_id}: the alerts, opened, stats, channels, rules, notices, charts, digests;
         /links/confirm-email; /api/alerts/targets/rotate

An alert is one for (user, rule, symbol, session). It rings on the user's channels at first and again when the
score rises by a set step.
"""

from typing import Final

from shared.contracts.alerts import AlertRaised, AlertUpdated, DeliverySettled, NoticeDeliverySettled, NoticeRaised
from shared.contracts.api import (
    ActionAudited,
    StockAdded,
    StockRemoved,
    StockSettingsChanged,
    UserSettingsChanged,
    UserSignedUp,
)
from shared.contracts.base import Event
from shared.contracts.broker import OrderFilled, OrderFlagged, OrderRejected, PositionChanged, PositionsDrifted
from shared.contracts.detector import ActivityDetected, LeaderboardChanged
from shared.contracts.payment import (
    CardExpiring,
    PaymentDisputed,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    RenewalDue,
    SubscriptionChanged,
    TrialEnding,
)
from shared.contracts.quotes import QuoteTaken

OWNS: Final = "alerts"
READS: Final[tuple[type[Event], ...]] = (
    ActivityDetected,
    UserSignedUp,
    UserSettingsChanged,
    StockAdded,
    StockSettingsChanged,
    StockRemoved,
    PaymentReceived,
    PaymentFailed,
    PaymentRefunded,
    PaymentDisputed,
    TrialEnding,
    CardExpiring,
    RenewalDue,
    SubscriptionChanged,
    OrderFilled,
    OrderRejected,
    OrderFlagged,
    PositionsDrifted,
    QuoteTaken,
    LeaderboardChanged,
    PositionChanged,
)
PUBLISHES: Final[tuple[type[Event], ...]] = (
    AlertRaised,
    AlertUpdated,
    NoticeRaised,
    DeliverySettled,
    NoticeDeliverySettled,
    ActionAudited,
)
