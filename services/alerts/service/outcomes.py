"""How deliveries ended, as events tell it."""

from collections.abc import Sequence
from typing import Any

from services.alerts.domain.states import end_of
from shared.contracts.alerts import DeliverySettled, NoticeDeliverySettled
from shared.contracts.base import Event, derived_id
from shared.db import Row
from shared.work import Settled


def told_of(ends: Sequence[Settled]) -> list[Event]:
    """Return what tells of ends of deliveries, whether of alerts or of notices."""
    return [of_delivery(end.row, end) if "alert_id" in end.row else of_notice_delivery(end.row, end) for end in ends]


def failed_with(other: Row, settled: Settled) -> Settled:
    """Return the end of a delivery that failed with the channel of another."""
    return Settled(other, "failed", other["attempts"], settled.error, settled.detail, {}, settled.at)


def of_delivery(row: Row, settled: Settled) -> DeliverySettled:
    """Return what tells how an alert's delivery ended."""
    return DeliverySettled(**_outcome(row, settled), alert_id=row["alert_id"])


def of_notice_delivery(row: Row, settled: Settled) -> NoticeDeliverySettled:
    """Return what tells how a notice's delivery ended."""
    return NoticeDeliverySettled(**_outcome(row, settled), notice_id=row["notice_id"])


def _outcome(row: Row, settled: Settled) -> dict[str, Any]:
    return {
        "id": derived_id(row["id"], "settled"),
        "time": settled.at,
        "delivery_id": row["id"],
        "user_id": row["user_id"],
        "channel": row["channel"],
        "status": end_of(settled.status),
        "attempts": settled.attempts,
        "detail": settled.detail,
    }
