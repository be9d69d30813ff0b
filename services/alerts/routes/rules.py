"""A user's rules: what becomes an alert or a notice. docs/rules.md tells the language of expressions."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from litestar import Response, delete, get, patch, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, JSONBody
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from services.alerts.domain.expressions import OPERATORS
from services.alerts.domain.kinds import ACTIVITY, KINDS
from services.alerts.routes.common import HttpRequest, actor_of
from services.alerts.service import NewRule, Rules, Trial
from services.alerts.store.audience import AudienceStore
from shared.contracts.symbols import PATTERN
from shared.db import Row
from shared.http import Caller, Who
from shared.idempotency import answer_once
from shared.identity import own
from shared.messaging.door import Done, Door

MAX_SYMBOLS: Final = 200

Symbol = Annotated[str, StringConstraints(pattern=f"^(?i:{PATTERN})$", to_upper=True, strip_whitespace=True)]


Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00-\x1f\x7f]+$")]
Symbols = Annotated[list[Symbol], Field(max_length=MAX_SYMBOLS)]
Score = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Premium = Annotated[Decimal, Field(ge=0, le=Decimal(10) ** 12, decimal_places=2)]
DEFAULT_MIN_SCORE: Final = 60.0


class RuleBody(BaseModel):
    """A rule: what it asks for, of the kind of events that it is over.

    One over activity makes alerts: of its symbols (none means all), what reaches its thresholds and holds its
    expression. `min_score` is 60 when neither it nor an expression is given. One over anything else has an expression
    only, and makes notices.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name
    over: str = Field(default=ACTIVITY, max_length=40)
    symbols: Symbols = Field(default_factory=list[Symbol])
    min_score: Score | None = None
    min_premium_usd: Premium = Decimal(0)
    expression: dict[str, Any] | None = None

    def rule(self) -> NewRule:
        """Return the rule that is meant."""
        usual = DEFAULT_MIN_SCORE if self.over == ACTIVITY and self.expression is None else 0.0
        return NewRule(
            self.name,
            tuple(self.symbols),
            usual if self.min_score is None else self.min_score,
            self.min_premium_usd,
            self.over,
            self.expression,
        )


class RulePatch(BaseModel):
    """What changes of a rule; what is not given stays. An expression of null is taken away."""

    model_config = ConfigDict(extra="forbid")

    name: Name = ""
    symbols: Symbols = Field(default_factory=list[Symbol])
    min_score: Score = 0.0
    min_premium_usd: Premium = Decimal(0)
    expression: dict[str, Any] | None = None
    enabled: bool = True

    def changes(self) -> dict[str, Any]:
        """Return what was given, as a NewRule has it."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return given | ({"symbols": tuple(self.symbols)} if "symbols" in given else {})


class RuleView(msgspec.Struct, frozen=True):
    """A rule. The one of kind "watchlist" follows the user's watchlist and settings."""

    id: UUID
    kind: str
    name: str
    over: str
    symbols: list[str]
    min_score: float
    min_premium_usd: str
    expression: Any
    enabled: bool


class ExampleView(msgspec.Struct, frozen=True):
    """An event that the rule would have fired for; of activity its first contract line that fits."""

    at: datetime
    symbol: str | None
    fields: Any


class TrialView(msgspec.Struct, frozen=True):
    """How often the rule would have fired since `since`: at least so often where `complete` is false."""

    fired: int
    complete: bool
    examined: int
    since: datetime
    examples: list[ExampleView]


class FieldView(msgspec.Struct, frozen=True):
    """A field that an expression can name. `always`: every event of the kind has it."""

    name: str
    type: str
    operators: list[str]
    choices: list[str]
    always: bool


class KindView(msgspec.Struct, frozen=True):
    """A kind of events that a rule can be over."""

    over: str
    fields: list[FieldView]


def handlers(rules: Rules, audience: AudienceStore, door: Door) -> list[HTTPRouteHandler]:
    """Return the routes."""

    @get("/api/alerts/{user_id:uuid}/rules", caller=Caller.USER)
    async def list_rules(identity: Who, user_id: FromPath[UUID]) -> list[RuleView]:
        """Return the user's rules; the first is the watchlist's, which the user's settings decide."""
        own(identity, user_id)
        async with door.read() as tx:
            watchlist, enabled = await audience.watchlist_rule(tx, user_id)
            rows = await rules.of_user(user_id, tx)
        first = RuleView(
            id=watchlist.rule_id,
            kind="watchlist",
            name=watchlist.name,
            over=ACTIVITY,
            symbols=[],
            min_score=watchlist.min_score,
            min_premium_usd=str(watchlist.min_premium_usd),
            expression=None,
            enabled=enabled,
        )
        return [first, *(_rule(row) for row in rows)]

    @post("/api/alerts/{user_id:uuid}/rules", caller=Caller.USER)
    async def add_rule(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], data: JSONBody[RuleBody]
    ) -> Response[bytes]:
        """Add a rule. An Idempotency-Key makes a repetition harmless."""
        own(identity, user_id)
        actor, rule = actor_of(request, identity), data.rule()

        async def add(tx: Any) -> Done[RuleView]:
            done = await rules.add(actor, user_id, rule, tx)
            return Done(_rule(done.value), done.events)

        return await answer_once(request, door, add, status_code=201)

    @patch("/api/alerts/{user_id:uuid}/rules/{rule_id:uuid}", caller=Caller.USER)
    async def change_rule(
        request: HttpRequest,
        identity: Who,
        user_id: FromPath[UUID],
        rule_id: FromPath[UUID],
        data: JSONBody[RulePatch],
    ) -> RuleView:
        """Change a rule, or switch it off and on."""
        own(identity, user_id)
        actor, changes = actor_of(request, identity), data.changes()
        return _rule(await door.run(lambda tx: rules.change(actor, user_id, rule_id, changes, tx)))

    @delete("/api/alerts/{user_id:uuid}/rules/{rule_id:uuid}", caller=Caller.USER)
    async def remove_rule(
        request: HttpRequest, identity: Who, user_id: FromPath[UUID], rule_id: FromPath[UUID]
    ) -> None:
        """Remove a rule; its alerts stay."""
        own(identity, user_id)
        actor = actor_of(request, identity)
        await door.run(lambda tx: rules.remove(actor, user_id, rule_id, tx))

    return [list_rules, add_rule, change_rule, remove_rule, *_trial_routes(rules, door)]


def _trial_routes(rules: Rules, door: Door) -> list[HTTPRouteHandler]:
    @post("/api/alerts/{user_id:uuid}/rules/try", caller=Caller.USER, status_code=200)
    async def try_rule(identity: Who, user_id: FromPath[UUID], data: JSONBody[RuleBody]) -> TrialView:
        """Return how often a rule would have fired in the last 30 days; nothing is saved."""
        own(identity, user_id)
        return _trial(await rules.trial(user_id, data.rule(), door.read))

    @get("/api/alerts/{user_id:uuid}/rules/kinds", caller=Caller.USER)
    async def list_kinds(identity: Who, user_id: FromPath[UUID]) -> list[KindView]:
        """Return the kinds of events that rules can be over, and the fields that expressions can name."""
        own(identity, user_id)
        return [
            KindView(
                kind.name,
                [
                    FieldView(one.name, one.type, list(OPERATORS[one.type]), list(one.choices), one.required)
                    for one in kind.fields.values()
                ],
            )
            for kind in KINDS.values()
        ]

    return [try_rule, list_kinds]


def _trial(trial: Trial) -> TrialView:
    examples = [ExampleView(one.at, one.symbol, one.fields) for one in trial.examples]
    return TrialView(trial.fired, trial.complete, trial.examined, trial.since, examples)


def _rule(row: Row) -> RuleView:
    return RuleView(
        id=row["rule_id"],
        kind="own",
        name=row["name"],
        over=row["kind"],
        symbols=row["symbols"],
        min_score=row["min_score"],
        min_premium_usd=str(row["min_premium_usd"]),
        expression=row["expression"],
        enabled=row["enabled"],
    )
