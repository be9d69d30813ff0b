"""Every topic, with its partitions, retention and limits. Topics are created from here, never by auto-creation.

Partitions of a keyed topic never grow without a drain: a key would change its partition and lose its order.
"""

from dataclasses import dataclass
from typing import Final

HOUR_MS: Final = 3_600_000
DAY_MS: Final = 24 * HOUR_MS


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic `<owner>.<plural>`.

    `key` names the entity whose order matters. `max_message_bytes` is the largest record batch the broker takes.
    """

    name: str
    partitions: int = 4
    retention_ms: int = 7 * DAY_MS
    compact: bool = False
    max_message_bytes: int = 1_048_588
    key: str = ""

    @property
    def owner(self) -> str:
        """The service that alone publishes to this topic."""
        return self.name.partition(".")[0]


CHAINS: Final = Topic(
    "data.chains", partitions=8, retention_ms=DAY_MS, max_message_bytes=4_194_304, key="underlying symbol"
)
QUOTES: Final = Topic("data.quotes", partitions=4, retention_ms=DAY_MS, key="symbol")
PAIRS: Final = Topic("data.pairs", partitions=4, retention_ms=DAY_MS, key="pair")
ACTIVITY: Final = Topic("detector.activity", partitions=8, key="underlying symbol")
LEADERBOARD: Final = Topic("detector.leaderboard", partitions=1, key="one for all")
ALERTS: Final = Topic("alerts.alerts", key="user")
DELIVERIES: Final = Topic("alerts.deliveries", key="user")
USERS: Final = Topic("api.users", key="user")
WATCHLISTS: Final = Topic("api.watchlists", key="user")
WEBHOOKS: Final = Topic("payment.webhooks", key="the provider's customer")
SUBSCRIPTIONS: Final = Topic("payment.subscriptions", retention_ms=30 * DAY_MS, key="user")
PAYMENTS: Final = Topic("payment.payments", retention_ms=30 * DAY_MS, key="user")
BROKER_COMMANDS: Final = Topic("broker.commands", key="account")
BROKER_ORDERS: Final = Topic("broker.orders", retention_ms=30 * DAY_MS, key="account")
BROKER_POSITIONS: Final = Topic("broker.positions", retention_ms=30 * DAY_MS, key="account")
AUDIT: Final = Topic("api.audit", retention_ms=30 * DAY_MS, key="subject")

TOPICS: Final = (
    CHAINS,
    QUOTES,
    PAIRS,
    ACTIVITY,
    LEADERBOARD,
    ALERTS,
    DELIVERIES,
    WEBHOOKS,
    SUBSCRIPTIONS,
    PAYMENTS,
    BROKER_COMMANDS,
    BROKER_ORDERS,
    BROKER_POSITIONS,
    USERS,
    WATCHLISTS,
    AUDIT,
)


def dead_letter_topic(consumer: str) -> Topic:
    """Return the topic that receives, byte for byte, what `consumer` gave up on."""
    return Topic(
        f"{consumer}.dlq", partitions=1, retention_ms=30 * DAY_MS, max_message_bytes=8_388_608, key="as it came"
    )
