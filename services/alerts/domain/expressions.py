"""The language of rules: an expression in JSON over an event's fields. Pure, and total: it always says yes or no.

    {"all": [{"field": "right", "op": "==", "value": "C"}, {"field": "dte", "op": "<=", "value": 30}]}

    {"all": [E, ...]}   {"any": [E, ...]}   {"not": E}
    {"field": F, "op": "==" | "!=" | "<" | "<=" | ">" | ">=", "value": V}
    {"field": F, "op": "in", "value": [V, ...]}
    {"field": F, "op": "contains", "value": V}    a part of a text, in capitals or not; an element of a list
    {"field": F, "op": "exists"}

What would surprise you: an event may lack a field. Then every comparison is false, `!=` too; `not` and `exists` speak
of it.
"""

import json
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import product
from typing import Any, Final, cast

from services.alerts.domain.fields import Field, Record, Type, Value, day, number, time
from shared.errors import Invalid

MAX_DEPTH: Final = 6
MAX_PARTS: Final = 50
MAX_VALUES: Final = 100
MAX_TEXT: Final = 200
MAX_NUMBER: Final = Decimal(10) ** 15
_MAX_TABLE: Final = 8  # 256 ways for its questions to be answered

_EQUAL: Final = ("==", "!=")
_ORDER: Final = ("<", "<=", ">", ">=")
OPERATORS: Final[Mapping[Type, tuple[str, ...]]] = {
    "number": (*_EQUAL, *_ORDER, "in", "exists"),
    "text": (*_EQUAL, "in", "contains", "exists"),
    "choice": (*_EQUAL, "in", "exists"),
    "flag": (*_EQUAL, "exists"),
    "date": (*_EQUAL, *_ORDER, "in", "exists"),
    "time": (*_EQUAL, *_ORDER, "exists"),
    "texts": ("contains", "exists"),
    "numbers": ("contains", "exists"),
}
_NEGATED: Final = {"!=": "==", ">": "<=", ">=": "<"}
_COMPARE: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda found, values: found in values,
    "contains": lambda found, value: value in (found.casefold() if isinstance(found, str) else found),
    "exists": lambda _found, _value: True,
}


class ExpressionInvalid(Invalid):
    """The expression is not one that this kind of event can be asked."""

    code = "EXPRESSION_INVALID"


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one field."""

    field: Field
    op: str
    value: Value | tuple[Value, ...] | None

    def holds(self, record: Record) -> bool:
        """Whether it is so."""
        found, value = record.get(self.field.name), cast("Any", self.value)
        return found is not None and _COMPARE[self.op](found, value)


@dataclass(frozen=True, slots=True)
class All:
    """Every part holds."""

    parts: tuple["Node", ...]

    def holds(self, record: Record) -> bool:
        """Whether it is so."""
        return all(part.holds(record) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Some:
    """At least one part holds."""

    parts: tuple["Node", ...]

    def holds(self, record: Record) -> bool:
        """Whether it is so."""
        return any(part.holds(record) for part in self.parts)


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: "Node"

    def holds(self, record: Record) -> bool:
        """Whether it is so."""
        return not self.part.holds(record)


Node = Question | All | Some | Not


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression. Two with the same text are the same."""

    text: str
    node: Node = field(compare=False, repr=False)

    def holds(self, record: Record) -> bool:
        """Whether an event with these fields is what is asked for."""
        return self.node.holds(record)


def parse(source: object, fields: Mapping[str, Field]) -> Expression:
    """Check an expression that somebody states. Raises ExpressionInvalid with the path and what is allowed there."""
    node = _Reader(fields).node(source, "expression", 1)
    return Expression(json.dumps(source, sort_keys=True, separators=(",", ":")), node)


def certain(node: Node) -> bool:
    """Whether an expression holds for every event, as far as its form tells.

    Its questions are taken as independent of each other, but for one and its opposite: `score > 10 or score < 20` is
    not seen through, and neither is an expression of very many questions.
    """
    atoms = list(dict.fromkeys(_atoms(node)))
    if len(atoms) > _MAX_TABLE:
        return False
    ways = product((False, True), repeat=len(atoms))
    return all(_worth(node, dict(zip(atoms, way, strict=True))) for way in ways)


class _Reader:
    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields
        self._parts = 0

    def node(self, source: object, path: str, depth: int) -> Node:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise _refused(path, f"an expression has at most {MAX_PARTS} parts")
        if depth > MAX_DEPTH:
            raise _refused(path, f"an expression is at most {MAX_DEPTH} deep")
        if not isinstance(source, dict):
            raise _refused(path, "an object is needed", ["all", "any", "not", "field"])
        given = cast("dict[str, Any]", source)
        if "field" in given:
            return self._question(given, path)
        if len(given) != 1 or not given.keys() <= {"all", "any", "not"}:
            raise _refused(path, "exactly one of these is needed", ["all", "any", "not", "field"])
        ((name, inner),) = given.items()
        if name == "not":
            return Not(self.node(inner, f"{path}.not", depth + 1))
        if not isinstance(inner, list) or not inner:
            raise _refused(f"{path}.{name}", "a list with at least one expression is needed")
        some = cast("list[object]", inner)
        parts = tuple(self.node(one, f"{path}.{name}[{at}]", depth + 1) for at, one in enumerate(some))
        return All(parts) if name == "all" else Some(parts)

    def _question(self, given: dict[str, Any], path: str) -> Question:
        name, op = given["field"], given.get("op")
        if not isinstance(name, str) or name not in self._fields:
            raise _refused(f"{path}.field", "there is no such field", sorted(self._fields))
        field = self._fields[name]
        if not isinstance(op, str) or op not in OPERATORS[field.type]:
            raise _refused(f"{path}.op", f"{name} is a {field.type}", OPERATORS[field.type])
        wanted = {"field", "op"} if op == "exists" else {"field", "op", "value"}
        if given.keys() != wanted:
            raise _refused(path, f"a question by {op} has exactly these", sorted(wanted))
        if op == "exists":
            return Question(field, op, None)
        if op != "in":
            return Question(field, op, _value(field, op, given["value"], f"{path}.value"))
        values = given["value"]
        if not isinstance(values, list) or not 1 <= len(cast("list[object]", values)) <= MAX_VALUES:
            raise _refused(f"{path}.value", f"a list of 1 to {MAX_VALUES} values is needed")
        some = cast("list[object]", values)
        return Question(field, op, tuple(_value(field, op, one, f"{path}.value[{at}]") for at, one in enumerate(some)))


def _value(field: Field, op: str, value: object, path: str) -> Value:
    if field.type == "flag":
        if isinstance(value, bool):
            return value
        raise _refused(path, "a truth value is needed", [True, False])
    if field.type in ("number", "numbers"):
        found = number(value) if not isinstance(value, str) or len(value) <= MAX_TEXT else None
        if found is None or found.copy_abs() > MAX_NUMBER:
            raise _refused(path, f"a number between -{MAX_NUMBER:.0e} and {MAX_NUMBER:.0e} is needed")
        return found
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT or not value.isprintable():
        raise _refused(path, f"a text of 1 to {MAX_TEXT} printable characters is needed", field.choices)
    if field.type in ("date", "time"):
        moment = day(value) if field.type == "date" else time(value)
        if moment is None:
            example = "2026-01-31" if field.type == "date" else "2026-01-31T15:30:00Z"
            raise _refused(path, f"a {field.type} such as {example} is needed")
        return moment
    if field.type == "choice" and value not in field.choices:
        raise _refused(path, f"{field.name} is never that", field.choices)
    return value.casefold() if op == "contains" and field.type == "text" else value


def _refused(path: str, reason: str, allowed: Sequence[object] = ()) -> ExpressionInvalid:
    shown = f": {', '.join(map(str, allowed))}" if allowed else ""
    return ExpressionInvalid(f"{path}: {reason}{shown}", path=path, allowed=list(allowed))


_Atom = tuple[str, str, object]


def _atom(asked: Question) -> tuple[_Atom, bool]:
    """Return a question's plain form, and whether it asks the opposite."""
    opposite = asked.field.required and asked.op in _NEGATED
    return (asked.field.name, _NEGATED[asked.op] if opposite else asked.op, asked.value), opposite


def _always(asked: Question) -> bool | None:
    """Return what a question is always answered, if it always says the same."""
    if not asked.field.required:
        return None
    if asked.op == "exists" or (asked.op == "in" and set(asked.field.choices) == set(cast("Any", asked.value))):
        return True
    if isinstance(asked.value, Decimal):
        least, most, value = asked.field.least, asked.field.most, asked.value
        below, above = least is not None and value < least, most is not None and value > most
        if below or above:
            return {"!=": True, "==": False, ">": below, ">=": below}.get(asked.op, above)
        if (asked.op, value) in {(">=", least), ("<=", most)}:
            return True
        if (asked.op, value) in {("<", least), (">", most)}:
            return False
    return None


def _atoms(node: Node) -> list[_Atom]:
    match node:
        case Question():
            return [] if _always(node) is not None else [_atom(node)[0]]
        case Not(part):
            return _atoms(part)
        case All(parts) | Some(parts):
            return [atom for part in parts for atom in _atoms(part)]


def _worth(node: Node, way: Mapping[_Atom, bool]) -> bool:
    match node:
        case Question():
            always = _always(node)
            if always is not None:
                return always
            atom, opposite = _atom(node)
            return way[atom] is not opposite
        case Not(part):
            return not _worth(part, way)
        case All(parts):
            return all(_worth(part, way) for part in parts)
        case Some(parts):
            return any(_worth(part, way) for part in parts)
