"""How an alert reads. What is simulated says so, first thing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from services.alerts.domain.matching import Line, Summary

SIMULATED_MARK: Final = "[SIMULATED] "
SIMULATED_NOTE: Final = "Simulated data: no real market stands behind these figures."
REPEAT_NOTE: Final = "This may repeat an earlier message."

_SIDES: Final = {
    "above_ask": "above the ask",
    "ask": "at the ask",
    "mid": "mid",
    "bid": "at the bid",
    "below_bid": "below the bid",
}
_RIGHTS: Final = {"C": "call", "P": "put"}


@dataclass(frozen=True, slots=True)
class Message:
    """What a sender sends. `target` is a webhook URL or an address: a secret, kept out of every repr."""

    delivery_id: UUID
    target: str = field(repr=False)
    title: str
    lines: tuple[str, ...]
    notes: tuple[str, ...]
    simulated: bool
    at: datetime


def title(symbol: str, summary: Summary) -> str:
    """Return the alert in one line."""
    contracts = "contract" if summary.contract_count == 1 else "contracts"
    mark = SIMULATED_MARK if summary.simulated else ""
    return f"{mark}{symbol}: {summary.contract_count} unusual {contracts}, score {summary.top_score:.0f}"


def line(symbol: str, one: Line) -> str:
    """Return one contract in one line."""
    parts = [
        f"{symbol} {one.expiration.isoformat()} {one.strike.normalize():f} {_RIGHTS[one.right]}",
        f"score {one.score:.0f}",
        f"volume {one.volume:,} over {one.open_interest:,} open",
        f"premium {dollars(one.premium_usd)}",
    ]
    if one.side in _SIDES:
        parts.append(_SIDES[one.side])
    return ", ".join(parts)


def body(symbol: str, best: Sequence[Line], contract_count: int) -> tuple[str, ...]:
    """Return the best few contracts, and how many more there are."""
    lines = [line(symbol, one) for one in best]
    if contract_count > len(best):
        lines.append(f"and {contract_count - len(best)} more")
    return tuple(lines)


def notes(  # what stands below the contracts
    *,
    rule_name: str,
    session: date,
    as_of: datetime,
    delay_s: float,
    source: str,
    premium_usd: Decimal,
    simulated: bool,
    repeat: bool,
) -> tuple[str, ...]:
    """Return where the alert comes from, and what to keep in mind."""
    delay = f", delayed {delay_s / 60:.0f} min" if delay_s >= 60 else ""  # noqa: PLR2004 - shown in minutes
    told = [
        f"Rule {rule_name}. Total premium {dollars(premium_usd)} at most.",
        f"Session {session.isoformat()}, as of {as_of.astimezone(UTC):%H:%M} UTC{delay}, from {source}.",
    ]
    if simulated:
        told.append(SIMULATED_NOTE)
    if repeat:
        told.append(REPEAT_NOTE)
    return tuple(told)


def confirmation(delivery_id: UUID, target: str, link: str, at: datetime) -> Message:
    """Return the mail that asks whether an address is its user's."""
    return Message(
        delivery_id=delivery_id,
        target=target,
        title="Confirm that Openbell may send its alerts here",
        lines=(link,),
        notes=(
            "Open the link within 24 hours to receive alerts at this address.",
            "If you did not ask for this, do nothing: no more will come.",
        ),
        simulated=False,
        at=at,
    )


def dollars(amount: Decimal) -> str:
    """Return an amount as people say it: $1.2M, $350k, $900."""
    for unit, name in ((Decimal(1_000_000_000), "B"), (Decimal(1_000_000), "M"), (Decimal(1_000), "k")):
        if amount >= unit:
            return f"${amount / unit:.{1 if name != 'k' else 0}f}{name}"
    return f"${amount:.0f}"
