"""The kinds of events that rules are over. A later event takes one line: in its kind, or a new kind of its own.

What would surprise you: a rule on activity is over an alert's contract lines, one by one; a rule on any other kind is
over the event as a whole.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from services.alerts.domain.expressions import Expression, ExpressionInvalid, Some, certain, parse
from services.alerts.domain.fields import Field, Record, fields_of, json_of, merged, record_of
from services.alerts.domain.notices import PAID, TRADED
from shared.contracts.base import Event
from shared.contracts.detector import UnusualContract
from shared.contracts.payment import SubscriptionChanged
from shared.errors import Invalid

ACTIVITY: Final = "activity"
LINE_FIELDS: Final = (
    *("right", "expiration", "strike", "last", "volume", "open_interest", "premium_usd", "side", "score"),
    *("volume_oi_ratio", "dte", "otm_pct", "iv"),
)
_MAY_BE_NEGATIVE: Final = frozenset({"otm_pct"})


class MatchesEverything(Invalid):
    """This rule would match everything: say what you want to hear of."""

    code = "RULE_MATCHES_EVERYTHING"


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What rules of one kind are over. `events` are those that are judged whole: none for activity.

    `owned`: each event belongs to a user, whose rules alone see it.
    """

    name: str
    fields: Mapping[str, Field]
    events: tuple[type[Event], ...] = ()
    owned: bool = False

    def json(self, event: Event) -> dict[str, Any]:
        """Return what a rule can name of an event, as it is kept."""
        return json_of(event, self.fields) | {"event": name_of(type(event))}

    def expression(self, text: str | None) -> Expression | None:
        """Return an expression that was checked when it was written.

        One of which a field or a word is gone since asks for nothing: its user's rule is silent, and no one else's.
        """
        return None if text is None else _parsed(self, text)

    def record(self, kept: Mapping[str, Any]) -> Record:
        """Return a kept event so that expressions can be asked about it."""
        return record_of(kept, self.fields)


@lru_cache(maxsize=10_000)
def _parsed(kind: Kind, text: str) -> Expression:
    try:
        return parse(json.loads(text), kind.fields)
    except ExpressionInvalid:
        return Expression(text, Some(()))


def name_of(event: type[Event]) -> str:
    """Return an event's name without its service and version: `order.filled`."""
    return event.type.partition(".")[2].rpartition(".")[0]


def _lines() -> Kind:
    found = {name: field for name, field in fields_of(UnusualContract).items() if name in LINE_FIELDS}
    for name, field in found.items():
        if field.type == "number" and name not in _MAY_BE_NEGATIVE:
            found[name] = replace(field, least=Decimal(0))
    found["score"] = replace(found["score"], most=Decimal(100))
    return Kind(ACTIVITY, found | {"simulated": Field("simulated", "flag")})


def over(name: str, *events: type[Event]) -> Kind:
    """Return the kind of rules over some events. Raises TypeError for events that do not fit together."""
    said = Field("event", "choice", tuple(name_of(event) for event in events))
    owned = {"user_id" in event.model_fields for event in events}
    if len(owned) > 1:
        raise TypeError(f"some events of {name} belong to a user and some do not")
    return Kind(name, merged(*(fields_of(event) | {"event": said} for event in events)), events, owned.pop())


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        _lines(),
        over("orders", *TRADED),
        over("payments", *PAID, SubscriptionChanged),
    )
}
HEARD: Final[tuple[type[Event], ...]] = tuple(event for kind in KINDS.values() for event in kind.events)


def check(
    kind: str, symbols: tuple[str, ...], min_score: float, min_premium_usd: Decimal, expression: Expression | None
) -> None:
    """Refuse a rule that does not fit its kind (Invalid) or that asks for everything (MatchesEverything)."""
    if kind != ACTIVITY and (symbols or min_score > 0 or min_premium_usd > 0):
        raise Invalid(
            "symbols, min_score and min_premium_usd are for rules on activity: write `field` and `op` in an expression",
            kind=kind,
        )
    limited = bool(symbols) or min_score >= 1 or min_premium_usd >= 1  # less leaves nothing out
    if not limited and (expression is None or certain(expression.node)):
        raise MatchesEverything(
            "this rule would match everything: give symbols, a score or premium of 1 or more, or an expression that"
            " leaves some out"
            if kind == ACTIVITY
            else "this rule would match everything: give an expression that leaves some out"
        )
