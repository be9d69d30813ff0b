"""Lists: pages newest first, ranges of time, and what stripe-python's types let an endpoint take."""

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

from stripe import RequestOptions

from tests.fakes.stripe.books import Obj, invalid, listed, number


def page(found: list[Obj], params: Obj, url: str) -> Obj:
    """Return a page, newest first. `starting_after` goes to older ones, `ending_before` to newer ones."""
    limit = number(params.get("limit", 10), "limit", 1, 100)
    found = [thing for thing in found if _created(thing, params.get("created"))][::-1]
    ids = [thing["id"] for thing in found]
    for name in ("starting_after", "ending_before"):
        if name in params and params[name] not in ids:
            raise invalid(f"No such object: '{params[name]}'", name, "resource_missing")
    if "ending_before" in params:
        newer = found[: ids.index(params["ending_before"])]
        return listed(newer[-limit:], url, more=len(newer) > limit)
    rest = found[ids.index(params["starting_after"]) + 1 :] if "starting_after" in params else found
    return listed(rest[:limit], url, more=len(rest) > limit)


@cache
def parameters_of(names: str) -> frozenset[str]:
    """Return what stripe-python's types allow an endpoint to take: "checkout.session_create" names the file."""
    group, _, name = names.rpartition(".")
    module = importlib.import_module(f"stripe.params.{group + '.' if group else ''}_{name}_params")
    kind = getattr(module, "".join(part.capitalize() for part in name.split("_")) + "Params")
    return frozenset(kind.__annotations__) - frozenset(RequestOptions.__annotations__)


def _created(thing: Obj, wanted: Any) -> bool:
    at = thing.get("created", 0)
    if not isinstance(wanted, dict):
        return wanted is None or at == int(wanted)
    tests: dict[str, Callable[[int], bool]] = {
        "gt": lambda bound: at > bound,
        "gte": lambda bound: at >= bound,
        "lt": lambda bound: at < bound,
        "lte": lambda bound: at <= bound,
    }
    return all(tests[name](int(bound)) for name, bound in wanted.items())
