"""deploy/alertmanager/alertmanager.yml as the Prometheus operator's resource: who hears of an alert on a cluster.

What would surprise you: the operator lets such a resource see only alerts with the label `namespace` of its own
namespace, and many of our rules put replicas together and lose it. So `rules` puts it on each.
"""

import copy
import re
from pathlib import Path
from typing import Any, Final

import yaml

Object = dict[str, Any]

NAMESPACE: Final = "openbell"
SECRET: Final = "openbell-alertmanager"  # noqa: S105 - its name
CONFIG: Final = Path(__file__).parents[1] / "alertmanager" / "alertmanager.yml"
_MATCHER: Final = re.compile(r'(\w+) *(=~|!=|!~|=) *"?([^"]*)"?')
_ROUTE: Final = {"group_by", "group_wait", "group_interval", "repeat_interval", "receiver", "matchers", "routes"}
_SLACK: Final = {"api_url_file", "title", "text", "send_resolved"}
_INHIBIT: Final = {"source_matchers", "target_matchers", "equal"}


def objects() -> list[Object]:
    """Return the AlertmanagerConfig, and the secret with the addresses that messages go to."""
    return translated(yaml.safe_load(CONFIG.read_text()))


def translated(config: Object) -> list[Object]:
    """Return the resources of a configuration. Raises ValueError at what has no translation here yet."""
    _only(config, {"route", "receivers", "inhibit_rules"})
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1alpha1",
            "kind": "AlertmanagerConfig",
            "metadata": {"name": "openbell"},
            "spec": {
                "route": _route(config["route"]),
                "receivers": [_receiver(one) for one in config["receivers"]],
                "inhibitRules": [_inhibit(one) for one in config["inhibit_rules"]],
            },
        },
        {
            "apiVersion": "external-secrets.io/v1",
            "kind": "ExternalSecret",
            "metadata": {"name": SECRET},
            "spec": {
                "refreshInterval": "1h0m0s",
                "secretStoreRef": {"kind": "SecretStore", "name": "openbell"},
                "target": {"name": SECRET, "creationPolicy": "Owner"},
                "dataFrom": [{"extract": {"key": "alertmanager"}}],
            },
        },
    ]


def rules(spec: Object) -> Object:
    """Return rules whose alerts say that they are of this namespace."""
    made = copy.deepcopy(spec)
    for group in made["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                rule["labels"]["namespace"] = NAMESPACE
    return made


def _only(given: Object, known: set[str]) -> None:
    if more := given.keys() - known:
        raise ValueError(f"deploy/k8s/alertmanager.py does not translate {', '.join(sorted(more))} yet")


def _route(route: Object) -> Object:
    _only(route, _ROUTE)
    made = {_camel(name): value for name, value in route.items() if name not in {"matchers", "routes"}}
    if "matchers" in route:
        made["matchers"] = _matchers(route["matchers"])
    if "routes" in route:
        made["routes"] = [_route(one) for one in route["routes"]]
    return made


def _receiver(receiver: Object) -> Object:
    _only(receiver, {"name", "slack_configs"})
    return {"name": receiver["name"], "slackConfigs": [_slack(one) for one in receiver["slack_configs"]]}


def _slack(slack: Object) -> Object:
    _only(slack, _SLACK)
    key = Path(slack["api_url_file"]).name.removeprefix("alertmanager_")
    rest = {_camel(name): value for name, value in slack.items() if name != "api_url_file"}
    return {"apiURL": {"name": SECRET, "key": key}, **rest}


def _inhibit(rule: Object) -> Object:
    _only(rule, _INHIBIT)
    matches = {"sourceMatch": _matchers(rule["source_matchers"]), "targetMatch": _matchers(rule["target_matchers"])}
    return {**matches, "equal": rule["equal"]} if "equal" in rule else matches


def _matchers(written: list[str]) -> list[Object]:
    made: list[Object] = []
    for one in written:
        found = _MATCHER.fullmatch(one.strip())
        if found is None:
            raise ValueError(f"{one} is no matcher")
        how = (
            {} if found[2] == "=" else {"matchType": found[2]}
        )  # the default; kustomize writes a bare = that YAML knows
        made.append({"name": found[1], **how, "value": found[3]})
    return made


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
