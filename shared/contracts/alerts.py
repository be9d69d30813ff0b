"""What the alerts service tells: alerts, notices, and what became of their deliveries."""

from datetime import date
from decimal import Decimal
from typing import ClassVar, Literal
from uuid import UUID

from pydantic import AwareDatetime

from shared.contracts.base import Event
from shared.contracts.topics import ALERTS, DELIVERIES, Topic

Channel = Literal["discord", "email", "webhook", "webpush", "fcm", "apprise"]
DeliveryStatus = Literal["sent", "delivered", "failed", "unknown", "suppressed", "digested"]
"""How a delivery ended: the other side took it, or (`delivered`) confirmed that it arrived; it failed, or nobody knows;
its user did not want it, or wants it in a digest."""


class _Alert(Event):
    topic: ClassVar[Topic] = ALERTS

    alert_id: UUID
    user_id: UUID
    rule_id: UUID
    symbol: str
    session: date
    as_of: AwareDatetime
    title: str
    top_score: float
    contract_count: int
    premium_usd: Decimal
    simulated: bool
    notified: bool  # this change also goes out on the user's channels

    @property
    def key(self) -> str:
        """The user."""
        return str(self.user_id)


class AlertRaised(_Alert):
    """A (user, rule, symbol, session) has its first match."""

    type: ClassVar[str] = "alerts.alert.raised.v1"


class AlertUpdated(_Alert):
    """An alert shows more or better contracts than before."""

    type: ClassVar[str] = "alerts.alert.updated.v1"


class NoticeRaised(Event):
    """A user is told something once, besides alerts: a receipt, a fill, a refusal."""

    type: ClassVar[str] = "alerts.notice.raised.v1"
    topic: ClassVar[Topic] = ALERTS

    notice_id: UUID
    user_id: UUID
    kind: str
    title: str
    lines: tuple[str, ...]
    at: AwareDatetime

    @property
    def key(self) -> str:
        """The user."""
        return str(self.user_id)


class _Settled(Event):
    topic: ClassVar[Topic] = DELIVERIES

    delivery_id: UUID
    user_id: UUID
    channel: Channel
    status: DeliveryStatus
    attempts: int
    detail: str

    @property
    def key(self) -> str:
        """The user."""
        return str(self.user_id)


class DeliverySettledV1(_Settled):
    """What DeliverySettled was at first, published no more: `delivered` means that the other side took it."""

    type: ClassVar[str] = "alerts.delivery.settled.v1"

    alert_id: UUID


class DeliverySettled(_Settled):
    """One delivery of an alert on one channel has its outcome."""

    type: ClassVar[str] = "alerts.delivery.settled.v2"

    alert_id: UUID


class NoticeDeliverySettled(_Settled):
    """One delivery of a notice on one channel has its outcome."""

    type: ClassVar[str] = "alerts.notice_delivery.settled.v1"

    notice_id: UUID
