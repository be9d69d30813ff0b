"""Door 1, Kafka: what is handled, and by what."""

from services.alerts.domain.kinds import HEARD
from services.alerts.domain.notices import PAID, TRADED
from services.alerts.service import Alerts, Notices, Rules
from services.alerts.service.digests import Digests
from services.alerts.service.gathering import Gathering
from services.alerts.service.pictures import Pictures
from shared.contracts.api import StockAdded, StockRemoved, StockSettingsChanged, UserSettingsChanged, UserSignedUp
from shared.contracts.broker import OrderFilled, PositionChanged
from shared.contracts.detector import ActivityDetected, LeaderboardChanged
from shared.contracts.quotes import QuoteTaken
from shared.messaging.consumer import Consumer


def tables(
    alerts: Alerts, notices: Notices, rules: Rules, *, pictures: Pictures, digests: Digests, gathering: Gathering
) -> tuple[Consumer, ...]:
    """Return the service's consumers."""
    activity = Consumer("alerts.activity")
    activity.on_batch(ActivityDetected, alerts.raise_alerts)

    users = Consumer("alerts.users")
    users.on(UserSignedUp, alerts.note_user)
    users.on(UserSettingsChanged, alerts.note_settings)

    watchlists = Consumer("alerts.watchlists")
    watchlists.on(StockAdded, alerts.watch)
    watchlists.on(StockSettingsChanged, alerts.watch)
    watchlists.on(StockRemoved, alerts.unwatch)

    payments = Consumer("alerts.payments")
    for event in PAID:
        payments.on_batch(event, notices.tell)

    trades = Consumer("alerts.trades")
    for event in TRADED:
        trades.on_batch(event, notices.tell)

    over = Consumer("alerts.rules")
    for event in HEARD:
        over.on_batch(event, rules.hear)

    gathered = Consumer("alerts.digests")
    gathered.on(UserSettingsChanged, digests.note_settings)
    gathered.on(LeaderboardChanged, gathering.note_leaders)
    gathered.on_batch(OrderFilled, gathering.note_fills)
    gathered.on_batch(PositionChanged, gathering.note_positions)

    quotes = Consumer("alerts.quotes")
    quotes.on_batch(QuoteTaken, pictures.keep)
    return activity, users, watchlists, payments, trades, over, gathered, quotes
