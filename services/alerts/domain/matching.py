"""Which alerts follow from what was seen.

What would surprise you: contracts are kept once for a (symbol, session), not once for an alert. An alert is
what a rule's thresholds leave of them, so a contract that comes again in a later snapshot counts once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Final, Literal
from uuid import UUID, uuid5

import msgspec

from shared.contracts.detector import ActivityDetected, Side

_ALERTS: Final = UUID("6f0cf9a4-52c7-5a53-9c3e-0a4d1c1f7a11")

Stock = tuple[str, date]
"""(symbol, session)."""


class Line(msgspec.Struct, frozen=True):
    """One unusual contract as an alert shows it: its best sighting of the session."""

    contract: str
    right: Literal["C", "P"]
    expiration: date
    strike: Decimal
    last: Decimal
    volume: int
    open_interest: int
    premium_usd: Decimal
    side: Side
    score: float
    simulated: bool

    @property
    def rank(self) -> tuple[float, Decimal]:
        """What makes a sighting better than another."""
        return self.score, self.premium_usd


@dataclass(frozen=True, slots=True)
class Rule:
    """What one user wants to hear of."""

    user_id: UUID
    rule_id: UUID
    name: str
    min_score: float
    min_premium_usd: Decimal


@dataclass(frozen=True, slots=True)
class Summary:
    """What a rule's thresholds leave of a stock's contracts. Never empty."""

    top_score: float
    contract_count: int
    premium_usd: Decimal
    best: tuple[Line, ...]
    simulated: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What is already recorded of an alert."""

    summary: Summary
    notified_score: float
    notifications: int


@dataclass(frozen=True, slots=True)
class Change:
    """An alert that is new, or shows something else than before."""

    alert_id: UUID
    rule: Rule
    symbol: str
    session: date
    summary: Summary
    as_of: datetime
    source: str
    delay_s: float
    cause: ActivityDetected
    new: bool
    notify: bool
    notified_score: float
    notifications: int


def alert_id(rule: Rule, stock: Stock) -> UUID:
    """Return the one id of (user, rule, symbol, session)."""
    symbol, session = stock
    return uuid5(_ALERTS, f"{rule.user_id}/{rule.rule_id}/{symbol}/{session.isoformat()}")


def watchlist_rule_id(user_id: UUID) -> UUID:
    """Return the id of the rule that every user has: the symbols on the watchlist."""
    return uuid5(user_id, "alerts/rule/watchlist")


def sightings(event: ActivityDetected) -> list[Line]:
    """Return the event's contracts as lines."""
    return [
        Line(
            contract=one.contract,
            right=one.right,
            expiration=one.expiration,
            strike=one.strike,
            last=one.last,
            volume=one.volume,
            open_interest=one.open_interest,
            premium_usd=one.premium_usd,
            side=one.side,
            score=one.score,
            simulated=event.simulated,
        )
        for one in event.contracts
    ]


def better(known: Mapping[str, Line], seen: Iterable[Line]) -> dict[str, Line]:
    """Return the sightings that are new or better than what is known of their contract."""
    changed: dict[str, Line] = {}
    for line in seen:
        before = changed.get(line.contract) or known.get(line.contract)
        if before is None or line.rank > before.rank:
            changed[line.contract] = line
    return changed


def summarise(lines: Iterable[Line], min_score: float, min_premium_usd: Decimal, best_few: int) -> Summary | None:
    """Return what thresholds leave of a stock's contracts; None when nothing passes."""
    passing = [line for line in lines if line.score >= min_score and line.premium_usd >= min_premium_usd]
    if not passing:
        return None
    passing.sort(key=lambda line: (-line.score, -line.premium_usd, line.contract))
    return Summary(
        top_score=passing[0].score,
        contract_count=len(passing),
        premium_usd=sum((line.premium_usd for line in passing), Decimal(0)),
        best=tuple(passing[:best_few]),
        simulated=any(line.simulated for line in passing),
    )


def rings(known: Known | None, top_score: float, step: float) -> bool:
    """Whether an alert goes out on the user's channels: at first, and when the score rose by `step`."""
    return known is None or top_score >= known.notified_score + step


def changes(
    stock: Stock,
    lines: Sequence[Line],
    causes: Sequence[ActivityDetected],
    rules: Sequence[Rule],
    known: Mapping[UUID, Known],
    *,
    best_few: int,
    step: float,
) -> list[Change]:
    """Return the alerts that `rules` make of a stock's contracts and that differ from what is known.

    `causes` are the events that brought the contracts, oldest first; the last one is the changes' cause.
    """
    cause = max(causes, key=lambda event: event.as_of)
    summaries: dict[tuple[float, Decimal], Summary | None] = {}  # many rules share their thresholds
    found: list[Change] = []
    for rule in rules:
        limits = (rule.min_score, rule.min_premium_usd)
        if limits not in summaries:
            summaries[limits] = summarise(lines, *limits, best_few)
        summary = summaries[limits]
        identity = alert_id(rule, stock)
        before = known.get(identity)
        if summary is None or (before is not None and before.summary == summary):
            continue
        notify = rings(before, summary.top_score, step)
        rung = before.notifications if before else 0
        found.append(
            Change(
                alert_id=identity,
                rule=rule,
                symbol=stock[0],
                session=stock[1],
                summary=summary,
                as_of=cause.as_of,
                source=cause.source,
                delay_s=cause.delay_s,
                cause=cause,
                new=before is None,
                notify=notify,
                notified_score=summary.top_score if notify or before is None else before.notified_score,
                notifications=rung + notify,
            )
        )
    return found
