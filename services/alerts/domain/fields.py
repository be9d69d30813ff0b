"""The fields that a rule can name, derived from an event's own model.

A model inside a model is named with a dot (`drifts.symbol`); of several such models the field is a list. What has no
type that can be compared is left out, and so is what must not be kept: whose event it is, and addresses of pages.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from types import NoneType, UnionType
from typing import Any, Final, Literal, Union, cast, get_args, get_origin
from uuid import UUID

from pydantic import AwareDatetime, BaseModel

Type = Literal["number", "text", "choice", "flag", "date", "time", "texts", "numbers"]
Value = Decimal | str | bool | date | datetime | tuple[str, ...] | tuple[Decimal, ...]
Record = Mapping[str, Value]
"""Field -> what an event has there. A field that it does not have is not in it."""

_PLAIN: Final[Mapping[Any, Type]] = {
    int: "number",
    float: "number",
    Decimal: "number",
    str: "text",
    UUID: "text",
    bool: "flag",
    date: "date",
    datetime: "time",
    AwareDatetime: "time",
}
_LEFT_OUT: Final = frozenset({"id", "time", "user_id", "receipt_url", "pay_url"})
_LISTS: Final[Mapping[Type, Type]] = {"text": "texts", "choice": "texts", "number": "numbers"}


@dataclass(frozen=True, slots=True)
class Field:
    """What can be named. `required`: every event of the kind has it. `least`, `most`: no event has less, or more."""

    name: str
    type: Type
    choices: tuple[str, ...] = ()
    required: bool = True
    least: Decimal | None = None
    most: Decimal | None = None


def fields_of(model: type[BaseModel], prefix: str = "") -> dict[str, Field]:
    """Return the fields that can be named of a model, by name."""
    found: dict[str, Field] = {}
    for name, info in model.model_fields.items():
        if name not in _LEFT_OUT:
            found |= {field.name: field for field in _typed(prefix + name, info.annotation)}
    return found


def merged(*of_events: Mapping[str, Field]) -> dict[str, Field]:
    """Return the fields of a kind that has several events. Raises TypeError where two disagree about a type."""
    found: dict[str, Field] = {}
    for fields in of_events:
        for name, field in fields.items():
            known = found.get(name, field)
            if known.type != field.type:
                raise TypeError(f"{name} is a {known.type} in one event and a {field.type} in another")
            choices = tuple(dict.fromkeys((*known.choices, *field.choices)))
            found[name] = replace(field, choices=choices)
    everywhere = {name for name in found if all(name in fields and fields[name].required for fields in of_events)}
    return {name: replace(field, required=name in everywhere) for name, field in found.items()}


def json_of(event: BaseModel, fields: Iterable[str]) -> dict[str, Any]:
    """Return what an event has in these fields, as JSON."""
    body = event.model_dump(mode="json")
    return {name: value for name in fields if (value := _at(body, name.split("."))) is not None}


def record_of(values: Mapping[str, Any], fields: Mapping[str, Field]) -> Record:
    """Return values (as JSON or as they are) so that they can be compared; what cannot be is left out."""
    found: dict[str, Value] = {}
    for name, field in fields.items():
        value = values.get(name)
        if value is not None and (read := _READ[field.type](value)) is not None:
            found[name] = read
    return found


def number(value: object) -> Decimal | None:
    """Return a finite number; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str | Decimal):
        return None
    try:
        found = value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        return None
    return found if found.is_finite() else None


def time(value: object) -> datetime | None:
    """Return a time with its zone; None for what is none."""
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return found if found.tzinfo is not None else None


def day(value: object) -> date | None:
    """Return a date; None for what is none."""
    try:
        return value if isinstance(value, date) else date.fromisoformat(str(value))
    except ValueError:
        return None


def _numbers(values: Iterable[object]) -> tuple[Decimal, ...]:
    return tuple(found for value in values if (found := number(value)) is not None)


_READ: Final[Mapping[Type, Callable[[Any], Value | None]]] = {
    "number": number,
    "text": str,
    "choice": str,
    "flag": bool,
    "date": day,
    "time": time,
    "texts": lambda values: tuple(str(value) for value in values if value is not None),
    "numbers": _numbers,
}


def _typed(name: str, annotation: Any) -> Iterator[Field]:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        some = [one for one in args if one is not NoneType]
        if len(some) == 1:
            yield from (replace(field, required=False) for field in _typed(name, some[0]))
    elif origin is Literal and all(isinstance(one, str) for one in args):
        yield Field(name, "choice", args)
    elif origin in (tuple, list):
        yield from (
            replace(field, type=_LISTS[field.type], choices=())
            for field in _typed(name, args[0])
            if field.type in _LISTS
        )
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from fields_of(annotation, f"{name}.").values()
    elif annotation in _PLAIN:
        yield Field(name, _PLAIN[annotation])


def _at(value: Any, path: list[str]) -> Any:
    if not path or value is None:
        return value
    if isinstance(value, list):
        return [_at(one, path) for one in cast("list[Any]", value)]
    return _at(cast("dict[str, Any]", value).get(path[0]), path[1:])
