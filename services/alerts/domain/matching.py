"""Which alerts follow from what was seen.

What would surprise you: contracts are kept once for a (symbol, session), not once for an alert. An alert is
what a rule's thresholds and expression leave of them, so a contract that comes again in a later snapshot counts once.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal, Protocol, TypeVar
from uuid import UUID

import msgspec

from services.alerts.domain.expressions import Expression
from services.alerts.domain.fields import Record
from services.alerts.domain.kinds import ACTIVITY, KINDS
from shared.contracts.base import derived_id
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
    volume_oi_ratio: float | None = None  # this and what follows: unknown of lines from before rules could name it
    dte: int | None = None
    otm_pct: float | None = None
    iv: float | None = None

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
    expression: Expression | None = None

    @property
    def limits(self) -> "Limits":
        """What decides about a line; many rules share theirs."""
        return self.min_score, self.min_premium_usd, self.expression


Limits = tuple[float, Decimal, Expression | None]


class Cause(Protocol):
    """What brought a stock's contracts: ActivityDetected, or what is kept of it."""

    @property
    def id(self) -> UUID:
        """The event's id."""
        ...

    @property
    def time(self) -> datetime:
        """When the event happened."""
        ...

    @property
    def as_of(self) -> datetime:
        """When the snapshot was taken."""
        ...

    @property
    def source(self) -> str:
        """Where it came from."""
        ...

    @property
    def delay_s(self) -> float:
        """How old it was, in seconds."""
        ...


C = TypeVar("C", bound=Cause)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a rule's limits leave of a stock's contracts. Never empty."""

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
    cause: Cause
    new: bool
    notify: bool
    notified_score: float
    notifications: int


def alert_id(rule: Rule, stock: Stock) -> UUID:
    """Return the one id of (user, rule, symbol, session)."""
    symbol, session = stock
    return derived_id(_ALERTS, f"{rule.user_id}/{rule.rule_id}/{symbol}/{session.isoformat()}")


def by_alert(rules: Iterable[Rule], stock: Stock) -> dict[UUID, Rule]:
    """Return the rules by the alert that each may make of a stock."""
    return {alert_id(rule, stock): rule for rule in rules}


def watchlist_rule_id(user_id: UUID) -> UUID:
    """Return the id of the rule that every user has: the symbols on the watchlist."""
    return derived_id(user_id, "alerts/rule/watchlist")


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
            volume_oi_ratio=one.volume_oi_ratio,
            dte=one.dte,
            otm_pct=one.otm_pct,
            iv=one.iv,
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


def passes(line: Line, limits: Limits) -> bool:
    """Whether a rule with these limits wants to hear of a line."""
    min_score, min_premium_usd, expression = limits
    if line.score < min_score or line.premium_usd < min_premium_usd:
        return False
    return expression is None or expression.holds(_record(line))


@lru_cache(maxsize=2_000)
def _record(line: Line) -> Record:
    """Many rules with many expressions look at the same few lines."""
    return KINDS[ACTIVITY].record(msgspec.structs.asdict(line))


def summarise(
    lines: Iterable[Line],
    min_score: float,
    min_premium_usd: Decimal,
    best_few: int,
    expression: Expression | None = None,
) -> Summary | None:
    """Return what a rule's limits leave of a stock's contracts; None when nothing passes."""
    limits = (min_score, min_premium_usd, expression)
    passing = [line for line in lines if passes(line, limits)]
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


def newest(causes: Sequence[C]) -> C:
    """Return the cause whose snapshot was taken last."""
    return max(causes, key=lambda event: event.as_of)


def rings(known: Known | None, top_score: float, step: float) -> bool:
    """Whether an alert goes out on the user's channels: at first, and when the score rose by `step`."""
    return known is None or top_score >= known.notified_score + step


def changes(
    stock: Stock,
    lines: Sequence[Line],
    causes: Sequence[Cause],
    rules: Mapping[UUID, Rule],
    known: Mapping[UUID, Known],
    *,
    best_few: int,
    step: float,
) -> list[Change]:
    """Return the alerts that `rules` make of a stock's contracts and that differ from what is known.

    `rules` and `known` are by alert (`by_alert`).
    `causes` are the events that brought the contracts, oldest first; the last one is the changes' cause.
    """
    cause = newest(causes)
    summaries: dict[Limits, Summary | None] = {}
    found: list[Change] = []
    for identity, rule in rules.items():
        if rule.limits not in summaries:
            summaries[rule.limits] = summarise(lines, rule.min_score, rule.min_premium_usd, best_few, rule.expression)
        summary = summaries[rule.limits]
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
