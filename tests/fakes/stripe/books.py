"""What a Stripe account holds: objects by kind and id, its clock, what is due, and the events it made of changes."""

import heapq
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

Obj = dict[str, Any]

API_VERSION: Final = "2026-10-28.endive"
HOUR: Final = 3_600
DAY: Final = 86_400


INDEXED: Final = {
    "charge": "customer",
    "invoice": "customer",
    "invoice_payment": "invoice",
    "invoiceitem": "of",
    "subscription": "customer",
}
"""By kind, a field that never changes and is asked for often."""


class Refused(Exception):
    """The request is answered with an error, in Stripe's words."""

    def __init__(self, status: int, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.body: Obj = {"error": {"type": kind, "message": message, **more}}


def invalid(message: str, param: str | None = None, code: str = "parameter_invalid", status: int = 400) -> Refused:
    """Return what Stripe says of a bad request."""
    return Refused(status, "invalid_request_error", message, code=code, param=param)


class Books:
    """An account. Times are Unix seconds; the clock moves only when it is told to."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.kinds: dict[str, dict[str, Obj]] = defaultdict(dict)
        self._by: dict[tuple[str, Any], list[Obj]] = defaultdict(list)
        self.hidden: dict[str, Obj] = defaultdict(dict)
        """What an object's owner may not see, by its id: how a card behaves, what a subscription's coupon is."""
        self.events: dict[str, Obj] = {}
        self.undelivered: set[str] = set()
        self.request: Obj = {"id": None, "idempotency_key": None}
        self._ids = itertools.count(1)
        self._due: list[tuple[int, int, Callable[[], object]]] = []

    def new_id(self, prefix: str) -> str:
        """Return an id that nothing has."""
        return f"{prefix}_1Fake{next(self._ids):014d}"

    def add(self, kind: str, thing: Obj) -> Obj:
        """Keep a new object."""
        self.kinds[kind][thing["id"]] = thing
        if kind in INDEXED:
            self._by[kind, thing[INDEXED[kind]]].append(thing)
        return thing

    def get(self, kind: str, object_id: Any, param: str = "id", name: str | None = None) -> Obj:
        """Return an object; raises what Stripe says when there is none."""
        found = self.kinds[kind].get(str(object_id))
        if found is None:
            shown = name or kind.rpartition(".")[2].replace("_", " ")
            raise invalid(f"No such {shown}: '{object_id}'", param, "resource_missing", 404)
        return found

    def of(self, kind: str, **fields: Any) -> Iterator[Obj]:
        """Return the objects with these fields, oldest first."""
        held = self.kinds[kind]
        near = self._by[kind, fields[INDEXED[kind]]] if INDEXED.get(kind) in fields else held.values()
        for thing in list(near):
            if thing["id"] in held and all(thing.get(name) == value for name, value in fields.items()):
                yield thing

    def emit(self, kind: str, thing: Obj, previous: Obj | None = None) -> Obj:
        """Make an event of an object as it is now."""
        data: Obj = {"object": thing} | ({"previous_attributes": previous} if previous is not None else {})
        event: Obj = {
            "id": self.new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now,
            "data": json.loads(json.dumps(data)),
            "livemode": False,
            "pending_webhooks": 1,
            "request": dict(self.request),
            "type": kind,
        }
        self.events[event["id"]] = event
        self.undelivered.add(event["id"])
        return event

    def change(self, kind: str, thing: Obj, **fields: Any) -> None:
        """Change an object and say so; says nothing when nothing changed."""
        previous = {name: thing.get(name) for name, value in fields.items() if thing.get(name) != value}
        thing.update(fields)
        if previous:
            self.emit(kind, thing, previous)

    def later(self, at: int, action: Callable[[], object]) -> None:
        """Do something when the clock gets there; the action looks whether it still applies."""
        heapq.heappush(self._due, (at, next(self._ids), action))

    def advance_to(self, at: int) -> None:
        """Move the clock; everything due on the way happens at its own time."""
        while self._due and self._due[0][0] <= at:
            due, _, action = heapq.heappop(self._due)
            self.now = max(self.now, due)
            self.request = {"id": None, "idempotency_key": None}
            action()
        self.now = max(self.now, at)


def number(value: Any, param: str, least: int = 0, most: int = 99_999_999) -> int:
    """Return a whole number that came as text; raises what Stripe says of another."""
    try:
        found = int(value)
    except (TypeError, ValueError):
        raise invalid(f"Invalid integer: {value}", param, "parameter_invalid_integer") from None
    if found < least:
        raise invalid("This value must be greater than or equal to " + str(least) + ".", param)
    if found > most:
        raise invalid(f"{param} must be no more than {most}", param, "amount_too_large")
    return found


def true(value: Any) -> bool:
    """Return a boolean that came as text."""
    return str(value).lower() == "true"


def listed(data: list[Obj], url: str, *, more: bool = False) -> Obj:
    """Return a list in Stripe's envelope."""
    return {"object": "list", "data": data, "has_more": more, "url": url}
