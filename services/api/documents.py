"""Several services' OpenAPI documents as one: what can be reached through the gateway.

Names of schemas carry their service's name, so that two services may each have an `Entry`.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

from services.api.forwarding import Rule

TITLE: Final = "Openbell"
_REFERENCE: Final = "#/components/schemas/"


def merge(own: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], rules: Iterable[Rule]) -> dict[str, Any]:
    """Return the gateway's document with the paths of other services that rules make reachable."""
    merged: dict[str, Any] = {**own, "info": {**own["info"], "title": TITLE}}
    paths, components = dict(own["paths"]), dict(own["components"])
    schemas = dict(components.get("schemas", {}))
    for service, foreign in sorted(others.items()):
        reachable = {
            path: item
            for path, item in foreign.get("paths", {}).items()
            if any(rule.service == service and _covers(rule, path) for rule in rules)
        }
        if not reachable:
            continue
        paths.update(_renamed(reachable, service))
        found: Mapping[str, Any] = foreign.get("components", {}).get("schemas", {})
        theirs = {name: schema for name, schema in found.items() if name != "Error"}
        schemas.update({f"{service}.{name}": _renamed(schema, service) for name, schema in theirs.items()})
    return {**merged, "paths": dict(sorted(paths.items())), "components": {**components, "schemas": schemas}}


def _covers(rule: Rule, path: str) -> bool:
    return path == rule.prefix or path.startswith(f"{rule.prefix}/")


def _renamed(part: Any, service: str) -> Any:
    if isinstance(part, dict):
        return {key: _renamed(value, service) for key, value in cast("dict[str, Any]", part).items()}
    if isinstance(part, list):
        return [_renamed(value, service) for value in cast("list[Any]", part)]
    if isinstance(part, str) and part.startswith(_REFERENCE) and part != f"{_REFERENCE}Error":
        return f"{_REFERENCE}{service}.{part.removeprefix(_REFERENCE)}"
    return part
