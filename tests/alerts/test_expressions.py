"""The language of rules: it says yes or no to everything, and refuses on write what it cannot ask."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain.expressions import MAX_DEPTH, MAX_PARTS, OPERATORS, ExpressionInvalid, certain, parse
from services.alerts.domain.fields import Field, record_of
from services.alerts.domain.kinds import ACTIVITY, KINDS, MatchesEverything, check
from shared.errors import Invalid

FIELDS = {
    field.name: field
    for field in (
        Field("score", "number", least=Decimal(0)),
        Field("change", "number", required=False),
        Field("plan", "text", required=False),
        Field("right", "choice", ("C", "P")),
        Field("whole", "flag"),
        Field("expiration", "date"),
        Field("at", "time"),
        Field("codes", "texts"),
        Field("ours", "numbers"),
    )
}
EVENT = {
    "score": 72.5,
    "plan": "Pro Yearly",
    "right": "C",
    "whole": True,
    "expiration": "2026-01-16",
    "at": "2026-01-02T15:30:00Z",
    "codes": ["COLLAR", "HALTED"],
    "ours": ["1.50"],
}

VALUES = {
    "number": st.one_of(st.integers(-(10**15), 10**15), st.floats(-1e15, 1e15), st.just("12.50")),
    "text": st.text("abcé <@`", min_size=1, max_size=20),
    "choice": st.sampled_from(["C", "P"]),
    "flag": st.booleans(),
    "date": st.dates().map(date.isoformat),
    "time": st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    "texts": st.text("abc", min_size=1, max_size=20),
    "numbers": st.integers(-5, 5),
}


@st.composite
def questions(draw: st.DrawFn) -> dict[str, Any]:
    field = draw(st.sampled_from(list(FIELDS.values())))
    op = draw(st.sampled_from(OPERATORS[field.type]))
    asked: dict[str, Any] = {"field": field.name, "op": op}
    if op == "in":
        return asked | {"value": draw(st.lists(VALUES[field.type], min_size=1, max_size=3))}
    return asked if op == "exists" else asked | {"value": draw(VALUES[field.type])}


expressions = st.recursive(
    questions(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"all": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"any": parts}),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=8,
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["all", "any", "not", "field", "op", "value", "x"]), inner, max_size=3),
    ),
    max_leaves=10,
)
events = st.fixed_dictionaries({}, optional={name: VALUES[field.type] for name, field in FIELDS.items()}).map(
    lambda event: {
        name: [value] if FIELDS[name].type in ("texts", "numbers") else value for name, value in event.items()
    }
)


def asked(source: object, event: dict[str, Any] = EVENT) -> bool:
    return parse(source, FIELDS).holds(record_of(event, FIELDS))


@given(expressions, events)
def test_whatever_is_accepted_says_yes_or_no_to_every_event_and_the_same_after_a_trip_through_json(
    source: dict[str, Any], event: dict[str, Any]
) -> None:
    try:
        expression = parse(source, FIELDS)
    except ExpressionInvalid as error:
        assert "at most" in error.message  # noqa: PT017 - only too deep is refused of these
        return
    again = parse(json.loads(json.dumps(source)), FIELDS)
    stored = parse(json.loads(expression.text), FIELDS)
    record = record_of(json.loads(json.dumps(event)), FIELDS)
    assert expression == again == stored
    assert expression.holds(record) is again.holds(record) is stored.holds(record)
    assert parse({"not": source}, FIELDS).holds(record) is not expression.holds(record)
    if certain(expression.node):
        whole = {**EVENT, **json.loads(json.dumps(event))}
        if Decimal(str(whole["score"])) >= 0:
            assert expression.holds(record_of(whole, FIELDS))


@given(anything)
def test_nothing_but_a_refusal_comes_of_what_is_no_expression(source: object) -> None:
    try:
        expression = parse(source, FIELDS)
    except ExpressionInvalid as error:
        assert error.details["path"].startswith("expression")  # noqa: PT017 - either way is right here
    else:
        assert expression.holds(record_of(EVENT, FIELDS)) in (True, False)


@given(st.dictionaries(st.sampled_from(list(FIELDS)), anything))
def test_an_event_whose_fields_are_odd_lacks_them_and_is_no_error(event: dict[str, Any]) -> None:
    lists = ("texts", "numbers")
    odd = {name: value for name, value in event.items() if FIELDS[name].type not in lists or isinstance(value, list)}
    record = record_of(odd, FIELDS)
    for name in FIELDS:
        assert parse({"field": name, "op": "exists"}, FIELDS).holds(record) is (name in record)


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ({"field": "score", "op": ">=", "value": 72.5}, True),
        ({"field": "score", "op": ">", "value": "72.50"}, False),
        ({"field": "score", "op": "in", "value": [1, 72.5]}, True),
        ({"field": "plan", "op": "contains", "value": "YEAR"}, True),
        ({"field": "plan", "op": "==", "value": "pro yearly"}, False),
        ({"field": "right", "op": "!=", "value": "P"}, True),
        ({"field": "whole", "op": "==", "value": True}, True),
        ({"field": "expiration", "op": "<", "value": "2026-01-17"}, True),
        ({"field": "at", "op": ">=", "value": "2026-01-02T16:30:00+01:00"}, True),
        ({"field": "codes", "op": "contains", "value": "HALTED"}, True),
        ({"field": "codes", "op": "contains", "value": "HALT"}, False),
        ({"field": "ours", "op": "contains", "value": 1.5}, True),
        ({"field": "change", "op": "exists"}, False),
        ({"field": "change", "op": "<", "value": 5}, False),
        ({"field": "change", "op": "!=", "value": 5}, False),
        ({"not": {"field": "change", "op": "<", "value": 5}}, True),
        ({"any": [{"field": "right", "op": "==", "value": "P"}, {"field": "score", "op": ">", "value": 70}]}, True),
        ({"all": [{"field": "right", "op": "==", "value": "P"}, {"field": "score", "op": ">", "value": 70}]}, False),
    ],
)
def test_an_expression_reads_as_it_is_meant(source: dict[str, Any], answer: bool) -> None:
    assert asked(source) is answer


@pytest.mark.parametrize(
    ("source", "path", "allowed"),
    [
        ([], "expression", "all, any, not, field"),
        ({}, "expression", "all, any, not, field"),
        ({"all": []}, "expression.all", "at least one"),
        ({"all": [], "any": []}, "expression", "all, any, not, field"),
        ({"any": [{"not": {"field": "price", "op": "<", "value": 1}}]}, "expression.any[0].not.field", "score"),
        ({"field": "right", "op": "<", "value": "C"}, "expression.op", "==, !=, in, exists"),
        ({"field": "right", "op": "==", "value": "X"}, "expression.value", "C, P"),
        ({"field": "right", "op": "in", "value": ["C", "X"]}, "expression.value[1]", "C, P"),
        ({"field": "right", "op": "in", "value": []}, "expression.value", "a list of 1 to 100"),
        ({"field": "score", "op": ">", "value": True}, "expression.value", "a number"),
        ({"field": "score", "op": ">", "value": float("nan")}, "expression.value", "a number"),
        ({"field": "score", "op": ">", "value": "1e999999999999"}, "expression.value", "a number"),
        ({"field": "score", "op": ">"}, "expression", "field, op, value"),
        ({"field": "score", "op": "exists", "value": 1}, "expression", "field, op"),
        ({"field": "whole", "op": "==", "value": "yes"}, "expression.value", "True, False"),
        ({"field": "plan", "op": "==", "value": "a\x00b"}, "expression.value", "printable"),
        ({"field": "plan", "op": "==", "value": "\ud800"}, "expression.value", "printable"),
        ({"field": "plan", "op": "==", "value": "x" * 201}, "expression.value", "1 to 200"),
        ({"field": "expiration", "op": "==", "value": "soon"}, "expression.value", "2026-01-31"),
        ({"field": "at", "op": "<", "value": "2026-01-31T15:30:00"}, "expression.value", "2026-01-31T15:30:00Z"),
        ({"field": ["score"], "op": "<", "value": 1}, "expression.field", "score"),
        ({"field": "score", "op": ["<"], "value": 1}, "expression.op", "=="),
    ],
)
def test_what_is_refused_says_where_and_what_is_allowed(source: object, path: str, allowed: str) -> None:
    with pytest.raises(ExpressionInvalid) as refused:
        parse(source, FIELDS)
    assert refused.value.details["path"] == path
    assert refused.value.message.startswith(f"{path}: ")
    assert allowed in refused.value.message


def test_depth_and_size_are_bounded() -> None:
    leaf: dict[str, Any] = {"field": "score", "op": ">", "value": 1}
    deep = leaf
    for _ in range(MAX_DEPTH):
        deep = {"not": deep}
    with pytest.raises(ExpressionInvalid, match=f"at most {MAX_DEPTH} deep"):
        parse(deep, FIELDS)
    parse(deep["not"], FIELDS)
    parse({"all": [leaf] * (MAX_PARTS - 1)}, FIELDS)
    with pytest.raises(ExpressionInvalid, match=f"at most {MAX_PARTS} parts"):
        parse({"all": [leaf] * MAX_PARTS}, FIELDS)


SCORE: dict[str, Any] = {"field": "score", "op": ">=", "value": 50}
CALL: dict[str, Any] = {"field": "right", "op": "==", "value": "C"}


@pytest.mark.parametrize(
    ("source", "everything"),
    [
        (SCORE, False),
        ({"field": "score", "op": ">=", "value": 0}, True),
        ({"not": {"field": "score", "op": "<", "value": -1}}, True),
        ({"field": "score", "op": "<=", "value": 100}, True),
        ({"field": "score", "op": "<", "value": 1e12}, True),
        ({"field": "score", "op": "!=", "value": 101}, True),
        ({"not": {"field": "score", "op": ">", "value": 100}}, True),
        ({"not": {"field": "score", "op": "==", "value": 101}}, True),
        ({"field": "score", "op": ">=", "value": 101}, False),
        ({"field": "score", "op": "<", "value": 100}, False),
        ({"field": "score", "op": ">", "value": 0}, False),
        ({"field": "score", "op": "!=", "value": -1}, True),
        ({"field": "right", "op": "exists"}, True),
        ({"field": "iv", "op": "exists"}, False),
        ({"field": "right", "op": "in", "value": ["P", "C"]}, True),
        ({"any": [SCORE, {"not": SCORE}]}, True),
        ({"any": [CALL, {"field": "right", "op": "!=", "value": "C"}]}, True),
        ({"any": [SCORE, {"field": "score", "op": "<", "value": 50}]}, True),
        ({"any": [{"all": [SCORE, CALL]}, {"not": SCORE}]}, False),
        ({"any": [{"all": [SCORE, CALL]}, {"not": SCORE}, {"not": CALL}]}, True),
    ],
)
def test_a_rule_that_matches_everything_is_refused_with_a_reason(source: dict[str, Any], everything: bool) -> None:
    expression = parse(source, KINDS[ACTIVITY].fields)
    if everything:
        with pytest.raises(MatchesEverything, match="would match everything"):
            check(ACTIVITY, (), 0.0, Decimal(0), expression)
    else:
        check(ACTIVITY, (), 0.0, Decimal(0), expression)
    check(ACTIVITY, ("AAPL",), 0.0, Decimal(0), expression)
    check(ACTIVITY, (), 1.0, Decimal(0), expression)


def test_a_rule_without_any_limit_is_refused_and_so_are_limits_of_another_kind() -> None:
    for kind in KINDS:
        with pytest.raises(MatchesEverything):
            check(kind, (), 0.0, Decimal(0), None)
    with pytest.raises(MatchesEverything):
        check(ACTIVITY, (), 1e-300, Decimal("0.01"), None)
    for limits in ((("AAPL",), 0.0, Decimal(0)), ((), 1.0, Decimal(0)), ((), 0.0, Decimal(1))):
        with pytest.raises(Invalid, match="write `field` and `op`"):
            check("orders", *limits, parse({"field": "whole", "op": "==", "value": True}, KINDS["orders"].fields))


def test_every_kind_names_its_events_and_no_field_that_is_kept_from_rules() -> None:
    for kind in KINDS.values():
        assert not kind.fields.keys() & {"id", "time", "user_id", "receipt_url", "pay_url"}
        assert kind.name == ACTIVITY or "event" in kind.fields
    assert KINDS["orders"].fields["drifts.symbol"].type == "texts"
    assert KINDS["payments"].fields["status"].choices[:3] == ("opened", "won", "lost")


def test_a_stored_expression_of_which_a_field_is_gone_holds_for_nothing_and_raises_nothing() -> None:
    gone = KINDS[ACTIVITY].expression('{"field":"gone","op":"exists"}')
    assert gone is not None
    assert not gone.holds({"score": Decimal(99)})
