"""Users' own rules over events: held against what comes, tried on what was, each user's own."""

import asyncio
from datetime import timedelta
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest

from services.alerts.domain.expressions import ExpressionInvalid
from services.alerts.domain.kinds import KINDS, MatchesEverything, over
from services.alerts.service import NewRule, Rules
from services.alerts.service.rules import EXAMPLES
from services.alerts.store.kept import PAGE, KeptEvents
from services.alerts.store.rules import RuleStore
from shared.clock import new_id
from shared.contracts.base import Event
from shared.contracts.payment import SubscriptionChanged
from shared.contracts.topics import ACTIVITY, Topic
from shared.errors import Invalid, NotFound
from tests.alerts.conftest import ACTOR, NOW, SESSION, Bench, activity, contract
from tests.alerts.test_notices import drifted, filled, receipt
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

SMALL: dict[str, Any] = {"field": "volume", "op": "<", "value": 1000}
WHOLE: dict[str, Any] = {"field": "whole", "op": "==", "value": True}
LARGE: dict[str, Any] = {"field": "quantity", "op": ">=", "value": 100}


def sized(name: str, volume: int, score: float = 80) -> Any:
    return contract(name, score).model_copy(update={"volume": volume})


def calls(expression: dict[str, Any], *symbols: str, min_score: float = 0.0) -> NewRule:
    return NewRule("calls", symbols, min_score, Decimal(0), expression=expression)


def orders(expression: dict[str, Any] | None) -> NewRule:
    return NewRule("big fills", (), 0.0, Decimal(0), "orders", expression)


async def test_a_rule_with_an_expression_makes_an_alert_of_the_lines_that_hold_it(bench: Bench) -> None:
    user = await bench.user()
    await bench.rule(user, calls({"all": [SMALL, {"field": "dte", "op": "<=", "value": 30}]}))
    events = await bench.tell(activity(sized("A", 5_000), sized("B", 900), sized("C", 100, 99)))
    assert [event.key for event in events] == [str(user)]
    (row,) = await bench.rows("alerts")
    assert [line["contract"] for line in row["best"]] == ["C", "B"]
    assert not await bench.tell(activity(sized("D", 2_000)))


async def test_a_rule_over_orders_becomes_a_notice_that_names_it_and_only_its_users_orders_do(bench: Bench) -> None:
    user, other = await bench.user(), await bench.user()
    await bench.channel(user)
    rule = await bench.rule(user, orders({"all": [WHOLE, LARGE]}))
    await bench.rule(other, orders({"field": "whole", "op": "exists"}))
    mine, small = filled(user, quantity=Decimal(100)), filled(user, quantity=Decimal(99))
    await bench.handle(bench.rules.hear, [mine, small, drifted(user), filled(other)])
    notice, others = sorted(await bench.rows("notices"), key=lambda row: row["user_id"] == other)
    assert (notice["user_id"], notice["kind"], notice["rule_id"]) == (user, "rule", rule["rule_id"])
    assert notice["title"] == "big fills: Bought 100 AAPL at 100.02 (paper)"
    assert notice["lines"][-1] == "Your rule big fills asked for this."
    assert others["user_id"] == other
    assert len(await bench.rows("notice_deliveries")) == 1
    await bench.handle(bench.rules.hear, [mine])
    assert len(await bench.rows("notices")) == 2


async def test_a_rule_over_payments_hears_of_subscriptions_that_nobody_is_told_of_otherwise(bench: Bench) -> None:
    user = await bench.user()
    over = {"all": [{"field": "event", "op": "==", "value": "subscription.changed"}, STATUS]}
    await bench.rule(user, NewRule("ended", (), 0.0, Decimal(0), "payments", over))
    about: dict[str, Any] = {"time": NOW, "user_id": user, "subscription_id": uuid4(), "provider": "manual"}
    for version, status in enumerate(("active", "expired")):
        changed = SubscriptionChanged(
            **about,
            id=uuid4(),
            version=version,
            plan="pro",
            status=status,
            entitlements=("alerts",),
            entitled_until=None,
            current_period_end=None,
        )
        await bench.handle(bench.rules.hear, [changed, receipt(user)])
    (notice,) = await bench.rows("notices")
    assert notice["title"] == "ended: subscription changed"
    assert {"status: expired", "entitlements: alerts"} <= set(notice["lines"])


STATUS: dict[str, Any] = {"field": "status", "op": "in", "value": ["expired", "canceled"]}


async def test_a_rule_that_is_off_or_whose_user_wants_no_alerts_tells_nothing(bench: Bench) -> None:
    off, quiet = await bench.user(), await bench.user(settings={"alerts_enabled": False})
    rule = await bench.rule(off, orders(WHOLE))
    await bench.rule(quiet, orders(WHOLE))
    seen = await bench.rule(off, calls(SMALL))
    for one in (rule, seen):
        await bench.door.run(lambda tx, one=one: bench.rules.change(ACTOR, off, one["rule_id"], {"enabled": False}, tx))
    await bench.handle(bench.rules.hear, [filled(off), filled(quiet)])
    assert not await bench.tell(activity(sized("A", 1)))
    assert await bench.rows("notices") == []
    await bench.door.run(lambda tx: bench.rules.change(ACTOR, off, rule["rule_id"], {"enabled": True}, tx))
    await bench.handle(bench.rules.hear, [filled(off)])
    assert [row["user_id"] for row in await bench.rows("notices")] == [off]


async def test_a_change_is_held_to_what_a_new_rule_is(bench: Bench) -> None:
    user = await bench.user()
    rule = await bench.rule(user, calls(SMALL))

    async def change(whose: UUID, **changes: Any) -> Any:
        return await bench.door.run(lambda tx: bench.rules.change(ACTOR, whose, rule["rule_id"], changes, tx))

    with pytest.raises(MatchesEverything):
        await change(user, expression=None)
    with pytest.raises(ExpressionInvalid):
        await change(user, expression={"field": "colour", "op": "==", "value": "red"})
    with pytest.raises(NotFound):
        await change(uuid4(), enabled=False)
    assert (await change(user, expression=None, symbols=("AAPL",)))["symbols"] == ["AAPL"]
    (row,) = await bench.rows("rules")
    assert (row["expression"], row["name"], row["enabled"]) == (None, "calls", True)


@pytest.mark.parametrize("expression", [SMALL, {"not": SMALL}, {"field": "otm_pct", "op": ">", "value": 50}])
@pytest.mark.parametrize("symbols", [(), ("AAPL", "TSLA")])
async def test_a_trial_counts_what_would_really_have_fired(
    bench: Bench, expression: dict[str, Any], symbols: tuple[str, ...]
) -> None:
    user = await bench.user()
    rule = calls(expression, *symbols, min_score=60)
    await bench.rule(user, rule)
    for session in (SESSION - timedelta(days=3), SESSION):
        at = NOW - (SESSION - session)
        for symbol in ("AAPL", "MSFT", "TSLA"):
            early = activity(sized("A", 900, 61), sized("B", 90, 59), symbol=symbol, session=session, as_of=at)
            late = activity(
                *(sized("A", 1_100, 62), sized("C", 5_000 if symbol == "MSFT" else 500, 70)),
                symbol=symbol,
                session=session,
                as_of=at + timedelta(minutes=1),
            )
            await bench.tell(early)
            await bench.tell(late)
    bench.clock.advance(3600)
    alerts = await bench.rows("alerts")
    trial = await bench.rules.trial(user, rule, bench.door.read)
    assert (trial.fired, trial.complete) == (len(alerts), True)
    assert {(one.at.date(), one.symbol) for one in trial.examples} == {
        (row["session"], row["symbol"]) for row in alerts
    }
    assert list(trial.examples) == sorted(trial.examples, key=lambda one: one.at, reverse=True)


async def test_a_trial_sees_the_users_own_events_of_thirty_days_and_nobody_elses(bench: Bench) -> None:
    user, other = await bench.user(), await bench.user()
    rule = orders(LARGE)
    await bench.rule(user, rule)
    some = [filled(user, quantity=Decimal(quantity)) for quantity in (99, 100, 101)]
    await bench.handle(bench.rules.hear, [*some, filled(other, quantity=Decimal(500)), drifted(user)])
    trial = await bench.rules.trial(user, rule, bench.door.read)
    assert (trial.fired, trial.examined) == (len(await bench.rows("notices")), 4) == (2, 4)
    assert {one.fields["quantity"] for one in trial.examples} == {"100", "101"}
    bench.clock.advance(31 * 86_400)
    assert (await bench.rules.trial(user, rule, bench.door.read)).fired == 0


async def test_a_short_trial_does_not_wait_for_the_end_of_a_long_one(bench: Bench) -> None:
    users = [await bench.user() for _ in range(2)]
    await bench.handle(bench.rules.hear, [filled(users[0]) for _ in range(3 * PAGE)])
    await bench.handle(bench.rules.hear, [filled(users[1])])
    ended: list[int] = []

    async def trying(number: int) -> None:
        ended.append((await bench.rules.trial(users[number], orders(WHOLE), bench.door.read)).fired)

    await asyncio.gather(trying(0), trying(1))
    assert ended == [1, 3 * PAGE]


async def test_a_trial_of_very_many_events_says_that_it_is_at_least(bench: Bench) -> None:
    rules = Rules(
        RuleStore(), KeptEvents(), bench.telling, max_rules=3, max_tried=PAGE, clock=bench.clock, new_id=new_id
    )
    user = await bench.user()
    await bench.handle(rules.hear, [filled(user) for _ in range(PAGE + 1)])
    trial = await rules.trial(user, orders(WHOLE), bench.door.read)
    assert (trial.fired, trial.examined, trial.complete, len(trial.examples)) == (PAGE, PAGE, False, EXAMPLES)
    trial = await bench.rules.trial(user, orders(WHOLE), bench.door.read)
    assert (trial.fired, trial.examined, trial.complete) == (PAGE + 1, PAGE + 1, True)


class PriceCrossed(Event):
    """What a later service may tell of everybody's symbols."""

    type: ClassVar[str] = "detector.price.crossed.v1"
    topic: ClassVar[Topic] = ACTIVITY

    symbol: str
    price: Decimal

    @property
    def key(self) -> str:
        return self.symbol


async def test_a_later_event_takes_one_line_in_the_table(bench: Bench) -> None:
    kinds = {**KINDS, "crossings": over("crossings", PriceCrossed)}
    rules = Rules(RuleStore(), KeptEvents(), bench.telling, max_rules=3, clock=bench.clock, new_id=new_id, kinds=kinds)
    users = [await bench.user() for _ in range(2)]
    stated = [
        NewRule("crossed", (), 0.0, Decimal(0), "crossings", {"field": "price", "op": ">=", "value": price})
        for price in (100, 200)
    ]
    for user, rule in zip(users, stated, strict=True):
        await bench.door.run(lambda tx, user=user, rule=rule: rules.add(ACTOR, user, rule, tx))
    await bench.handle(rules.hear, [PriceCrossed(id=uuid4(), time=NOW, symbol="AAPL", price=Decimal(150))])
    (notice,) = await bench.rows("notices")
    assert (notice["user_id"], notice["title"]) == (users[0], "crossed: price crossed")
    bench.clock.advance(1)
    trial = await rules.trial(users[1], stated[1], bench.door.read)
    assert (trial.fired, trial.examined) == (0, 1)


async def test_kept_events_go_when_nothing_in_their_month_is_thirty_days_old(bench: Bench) -> None:
    user, kept = await bench.user(), KeptEvents()
    await bench.handle(bench.rules.hear, [filled(user)])
    await kept.forget(bench.door.transaction, (NOW + timedelta(days=30)).date())
    assert len(await bench.rows("kept_events")) == 1
    await kept.forget(bench.door.transaction, (NOW + timedelta(days=62)).date())
    assert await bench.rows("kept_events") == []


async def test_rules_are_stated_tried_changed_and_switched_off_over_http(client: Client) -> None:
    user = await client.bench.user()
    path = f"/api/alerts/{user}/rules"
    body: dict[str, Any] = {"name": "big fills", "over": "orders", "expression": LARGE}
    await client.bench.handle(client.bench.rules.hear, [filled(user, quantity=Decimal(100))])
    client.bench.clock.advance(1)
    tried = (await client("POST", f"{path}/try", user, json=body)).json()
    assert (tried["fired"], tried["complete"], tried["examples"][0]["fields"]["event"]) == (1, True, "order.filled")
    assert len((await client("GET", path, user)).json()) == 1
    added = (await client("POST", path, user, json=body)).json()
    assert (added["over"], added["expression"], added["enabled"]) == ("orders", LARGE, True)
    off = await client("PATCH", f"{path}/{added['id']}", user, json={"enabled": False})
    assert (off.status_code, off.json()) == (200, {**added, "enabled": False})
    assert (await client("GET", path, user)).json()[1] == off.json()
    kinds = {one["over"]: one["fields"] for one in (await client("GET", f"{path}/kinds", user)).json()}
    assert set(kinds) == set(KINDS)
    side = next(field for field in kinds["orders"] if field["name"] == "side")
    assert (side["type"], side["choices"], side["always"]) == ("choice", ["buy", "sell"], False)
    told = [row["topic"] for row in await client.bench.rows("outbox")]
    assert told.count("api.audit") == 2


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"expression": {"field": "colour", "op": "==", "value": 1}}, "EXPRESSION_INVALID", "expression.field"),
        ({"expression": {"field": "premium_usd", "op": ">=", "value": 0}}, "RULE_MATCHES_EVERYTHING", "everything"),
        ({"min_score": 0}, "RULE_MATCHES_EVERYTHING", "everything"),
        ({"over": "weather"}, "VALIDATION_ERROR", "activity, orders, payments"),
        ({"over": "orders"}, "RULE_MATCHES_EVERYTHING", "expression"),
        ({"over": "orders", "expression": WHOLE, "min_score": 5}, "VALIDATION_ERROR", "rules on activity"),
        ({"expression": []}, "VALIDATION_ERROR", ""),
    ],
)
async def test_a_rule_that_makes_no_sense_is_refused_with_a_reason_and_so_is_its_trial(
    client: Client, change: dict[str, Any], code: str, said: str
) -> None:
    user = uuid4()
    for path in ("rules", "rules/try"):
        answer = await client("POST", f"/api/alerts/{user}/{path}", user, json={"name": "r", **change})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, code), answer.text
        assert said in answer.text


async def test_nobody_tries_or_changes_anothers_rules(client: Client) -> None:
    user, thief = await client.bench.user(), uuid4()
    rule = await client.bench.rule(user, orders(WHOLE))
    for method, path in (("POST", "try"), ("GET", "kinds"), ("PATCH", str(rule["rule_id"]))):
        json = {"enabled": False} if method == "PATCH" else {"name": "r"}
        more = {} if method == "GET" else {"json": json}
        assert (await client(method, f"/api/alerts/{user}/rules/{path}", thief, **more)).status_code == 403
    other = await client("PATCH", f"/api/alerts/{thief}/rules/{rule['rule_id']}", thief, json={"enabled": False})
    assert other.status_code == 404


def test_an_event_with_a_field_of_another_type_than_the_kind_has_does_not_fit() -> None:
    class Odd(PriceCrossed):
        type: ClassVar[str] = "detector.price.odd.v1"
        price: str  # pyright: ignore[reportIncompatibleVariableOverride] - that is what is refused

    with pytest.raises(TypeError, match="price is a number in one event and a text in another"):
        over("crossings", PriceCrossed, Odd)
    with pytest.raises(TypeError, match="belong to a user"):
        over("crossings", PriceCrossed, SubscriptionChanged)
    with pytest.raises(Invalid):
        raise MatchesEverything
