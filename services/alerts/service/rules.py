"""Users' own rules: stated, tried on what was, and held against what comes.

What would surprise you: rules on activity are held against it in `Alerts`, where alerts come from; here are those on
any other kind of event, which become notices.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from services.alerts.domain.expressions import Expression, parse
from services.alerts.domain.fields import Record
from services.alerts.domain.kinds import ACTIVITY, KINDS, Kind, check
from services.alerts.domain.matching import Limits, Line, passes
from services.alerts.domain.notices import Saying, rule_notice
from services.alerts.domain.words import Words
from services.alerts.service.audit import Actor, audited
from services.alerts.service.notices import Notices
from services.alerts.store.kept import KEPT, PAGE, KeptEvents
from services.alerts.store.rules import PAGE as RULES_AT_ONCE
from services.alerts.store.rules import RuleStore
from shared.clock import Clock, NewId
from shared.contracts.api import ActionAudited
from shared.contracts.base import Event, derived_id
from shared.db import Row, Tx
from shared.errors import Conflict, Invalid, NotFound
from shared.messaging.door import Done

MAX_TRIED: Final = 50_000
EXAMPLES: Final = 10
Reading = Callable[[], AbstractAsyncContextManager[Tx]]
"""`read` of a Door."""
_FIRST: Final = UUID(int=0)
_LAST: Final = UUID(int=2**128 - 1)


@dataclass(frozen=True, slots=True)
class NewRule:
    """A rule as a user states it. No symbols means every symbol; `expression` is what domain/expressions.py reads."""

    name: str
    symbols: tuple[str, ...]
    min_score: float
    min_premium_usd: Decimal
    kind: str = ACTIVITY
    expression: object | None = None
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """One event that a rule would have fired for. Of activity: its first line that passes."""

    at: datetime
    symbol: str | None
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Trial:
    """How often a rule would have fired. Not `complete`: at least so often, for older events were not looked at."""

    fired: int
    complete: bool
    examined: int
    since: datetime
    examples: tuple[Example, ...]


class Rules:
    """Takes a transaction, returns what happened."""

    def __init__(
        self,
        store: RuleStore,
        kept: KeptEvents,
        notices: Notices,
        *,
        max_rules: int,
        clock: Clock,
        new_id: NewId,
        max_tried: int = MAX_TRIED,
        kinds: Mapping[str, Kind] = KINDS,
    ) -> None:
        self._store = store
        self._kept = kept
        self._notices = notices
        self._max_rules = max_rules
        self._clock = clock
        self._new_id = new_id
        self._max_tried = max_tried
        self._kinds = kinds
        self._kind_of = {event: kind for kind in kinds.values() for event in kind.events}
        self._reading = asyncio.Semaphore(1)  # trials take turns, page by page; alerts go first

    # What the other services tell

    async def hear(self, events: Sequence[Event], tx: Tx) -> Sequence[Event]:
        """Keep events that rules can be over, and tell those whose rules ask for them."""
        heard: dict[Kind, list[_Heard]] = defaultdict(list)
        for event in events:
            kind = self._kind_of[type(event)]
            heard[kind].append(_Heard(event, getattr(event, "user_id", None), kind.json(event)))
        await self._kept.keep(tx, [_row(kind, one) for kind, some in heard.items() for one in some])
        sayings = [saying for kind, some in heard.items() for saying in await self._sayings(kind, some, tx)]
        return await self._notices.say(sayings, tx)

    async def _sayings(self, kind: Kind, heard: "Sequence[_Heard]", tx: Tx) -> list[Saying]:
        owners = sorted({one.owner for one in heard if one.owner is not None}) if kind.owned else None
        records = [(one, kind.record(one.fields)) for one in heard]
        found: list[Saying] = []
        after = (_FIRST, _FIRST)
        while True:
            rules = await self._store.over(tx, kind.name, owners, after)
            asked = [(rule, one, record) for rule in rules for one, record in _held(kind, rule, records)]
            words = await self._notices.words(tx, {rule["user_id"] for rule, _, _ in asked})
            found += [_saying(rule, one, record, words[rule["user_id"]]) for rule, one, record in asked]
            if len(rules) < RULES_AT_ONCE:
                return found
            after = (rules[-1]["user_id"], rules[-1]["rule_id"])

    # What users ask for

    async def of_user(self, user_id: UUID, tx: Tx) -> list[Row]:
        """Return a user's own rules, oldest first."""
        return await self._store.of_user(tx, user_id)

    async def add(self, actor: Actor, user_id: UUID, rule: NewRule, tx: Tx) -> Done[Row]:
        """Add a rule. Raises Invalid for one that makes no sense, Conflict when the user has too many."""
        self._checked(rule)
        await self._store.lock(tx, user_id)
        if len(await self._store.of_user(tx, user_id)) >= self._max_rules:
            raise Conflict(f"{self._max_rules} rules are the most a user may have")
        fields = _columns(rule) | {"kind": rule.kind, "now": self._clock()}
        row = await self._store.add(tx, rule_id=self._new_id(), user_id=user_id, **fields)
        if row is None:
            raise Conflict
        return Done(row, [self._audited(actor, "add.rule", user_id, row["rule_id"], name=rule.name)])

    async def change(self, actor: Actor, user_id: UUID, rule_id: UUID, changes: Mapping[str, Any], tx: Tx) -> Done[Row]:
        """Change some fields of a rule; its kind stays. Raises NotFound, Invalid when the whole makes no sense."""
        known = await self._store.one(tx, user_id, rule_id)
        if known is None:
            raise NotFound("there is no such rule")
        rule = replace(_rule(known), **changes)
        self._checked(rule)
        row = await self._store.change(tx, user_id=user_id, rule_id=rule_id, **_columns(rule))
        if row is None:
            raise Conflict
        changed = ", ".join(sorted(changes))
        return Done(row, [self._audited(actor, "change.rule", user_id, rule_id, name=rule.name, changed=changed)])

    async def remove(self, actor: Actor, user_id: UUID, rule_id: UUID, tx: Tx) -> Done[None]:
        """Remove a rule; its alerts stay. Raises NotFound."""
        if not await self._store.remove(tx, user_id, rule_id):
            raise NotFound("there is no such rule")
        return Done(None, [self._audited(actor, "remove.rule", user_id, rule_id)])

    async def trial(self, user_id: UUID, rule: NewRule, read: Reading) -> Trial:
        """Return how often a rule would have fired in the last thirty days. Raises Invalid.

        Newest events come first; after `max_tried` of them no more are read. Rules on activity fire once for a symbol
        and session.
        """
        expression = self._checked(rule)
        kind, until = self._kinds[rule.kind], self._clock()
        limits: Limits = (rule.min_score, rule.min_premium_usd, expression)
        fired: set[object] = set()
        examples: list[Example] = []
        examined, complete = 0, True
        async for rows in self._newest(kind, user_id, rule.symbols, until, read):
            examined += len(rows)
            for row in rows:
                what = (row["symbol"], row["session"]) if kind.name == ACTIVITY else row["id"]
                if what not in fired and (example := _fires(kind, limits, row)) is not None:
                    fired.add(what)
                    examples = _newest_few(examples, example)
            if examined >= self._max_tried:
                complete = False
                break
        return Trial(len(fired), complete, examined, until - KEPT, tuple(examples))

    async def _newest(
        self, kind: Kind, user_id: UUID, symbols: Sequence[str], until: datetime, read: Reading
    ) -> AsyncGenerator[list[Row]]:
        """Yield the kept events that a rule sees, in pages, newest first for each symbol."""
        owner = user_id if kind.owned else None
        for symbol in sorted(set(symbols)) or [None]:
            before = (until, _LAST)
            while True:
                async with self._reading, read() as tx:
                    rows = await self._kept.newest(tx, kind.name, owner, symbol, since=until - KEPT, before=before)
                yield rows
                if len(rows) < PAGE:
                    break
                before = (rows[-1]["at"], rows[-1]["id"])

    def _checked(self, rule: NewRule) -> Expression | None:
        kind = self._kinds.get(rule.kind)
        if kind is None:
            raise Invalid(f"a rule is over one of {', '.join(self._kinds)}", allowed=list(self._kinds))
        expression = None if rule.expression is None else parse(rule.expression, kind.fields)
        check(rule.kind, rule.symbols, rule.min_score, rule.min_premium_usd, expression)
        return expression

    def _audited(self, actor: Actor, action: str, user_id: UUID, rule_id: UUID, **details: str) -> ActionAudited:
        subject = f"{user_id}/{rule_id}"
        return audited(actor, action, subject, id=self._new_id(), at=self._clock(), **details)


@dataclass(frozen=True, slots=True)
class _Heard:
    event: Event
    owner: UUID | None
    fields: Mapping[str, Any]


def _row(kind: Kind, one: _Heard) -> dict[str, Any]:
    return {
        "id": one.event.id,
        "kind": kind.name,
        "user_id": one.owner,
        "symbol": one.fields.get("symbol"),
        "session": None,
        "at": one.event.time,
        "fields": one.fields,
    }


def _held(kind: Kind, rule: Row, records: Sequence[tuple[_Heard, Record]]) -> Iterator[tuple[_Heard, Record]]:
    expression = kind.expression(rule["expression"])
    for one, record in records:
        if one.owner in (None, rule["user_id"]) and (expression is None or expression.holds(record)):
            yield one, record


def _saying(rule: Row, one: _Heard, record: Record, words: Words) -> Saying:
    notice = rule_notice(rule["name"], one.event, record, words)
    rule_id: UUID = rule["rule_id"]
    return Saying(derived_id(one.event.id, f"rule/{rule_id}"), rule["user_id"], notice, one.event, rule_id)


def _newest_few(examples: list[Example], another: Example) -> list[Example]:
    if len(examples) == EXAMPLES and another.at <= examples[-1].at:
        return examples
    return sorted([*examples, another], key=lambda one: one.at, reverse=True)[:EXAMPLES]


def _fires(kind: Kind, limits: Limits, row: Row) -> Example | None:
    if kind.name != ACTIVITY:
        expression = limits[2]
        holds = expression is None or expression.holds(kind.record(row["fields"]))
        return Example(row["at"], row["symbol"], row["fields"]) if holds else None
    line = next((line for line in _lines(row) if passes(line, limits)), None)
    return None if line is None else Example(row["at"], row["symbol"], msgspec.to_builtins(line))


def _lines(row: Row) -> Iterator[Line]:
    return (msgspec.convert(line, Line) for line in row["fields"]["lines"])


def _rule(row: Row) -> NewRule:
    return NewRule(
        name=row["name"],
        symbols=tuple(row["symbols"]),
        min_score=row["min_score"],
        min_premium_usd=row["min_premium_usd"],
        kind=row["kind"],
        expression=row["expression"],
        enabled=row["enabled"],
    )


def _columns(rule: NewRule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "symbols": sorted(set(rule.symbols)),
        "min_score": rule.min_score,
        "min_premium_usd": rule.min_premium_usd,
        "expression": rule.expression,
        "enabled": rule.enabled,
    }
