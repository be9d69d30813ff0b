"""The definitions that operators publish of their custom resources, and what ours have that these do not allow.

They come by Go, which these operators are published with, pinned by version and by hash. Strimzi is no Go module:
crds.py alone speaks for it.

What would surprise you: a cluster drops a field that a definition does not name, and says nothing. Here it is refused.
Rules in CEL (`x-kubernetes-validations`) are for a cluster to judge.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import yaml
from jsonschema import Draft4Validator

from deploy.tools import GoModule

MODULES: Final[Mapping[GoModule, tuple[str, ...]]] = {
    GoModule(
        "github.com/cloudnative-pg/cloudnative-pg", "v1.28.0", "h1:vkv0a0ewDSfJOPJrsyUr4uczsxheReAWf/k171V0Dm0="
    ): (
        "config/crd/bases/postgresql.cnpg.io_clusters.yaml",
        "config/crd/bases/postgresql.cnpg.io_scheduledbackups.yaml",
    ),
    GoModule("github.com/kedacore/keda/v2", "v2.18.3", "h1:PY3o80tzBAzCffS8J6eBZctT4B+g/r26zErNSMleC50="): (
        "config/crd/bases/keda.sh_scaledobjects.yaml",
        "config/crd/bases/keda.sh_triggerauthentications.yaml",
    ),
    GoModule("sigs.k8s.io/gateway-api", "v1.6.3", "h1:lKpJa5bGlraC/QeACvCpsHLdmO6y0iKfzVl6gzaFEYc="): (
        "config/crd/standard/gateway.networking.k8s.io_gateways.yaml",
        "config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",
    ),
    GoModule(
        "github.com/cloudnative-pg/plugin-barman-cloud", "v0.15.0", "h1:gNVytrzzYUE08wxLDrjfJqy1FPPSFkMe1OEr4s4pVI0="
    ): ("config/crd/bases/barmancloud.cnpg.io_objectstores.yaml",),
    GoModule("github.com/cert-manager/cert-manager", "v1.19.1", "h1:Txh8L/nLWTDcb7ZnXuXbTe15BxQnLbLirXmbNk0fGgY="): (
        "deploy/crds/cert-manager.io_issuers.yaml",
    ),
    GoModule(
        "github.com/external-secrets/external-secrets", "v1.3.2", "h1:u2J8RjlHIeF0oZCqtl92adI/uZWUwOesJIDkfql6LqQ="
    ): (
        "config/crds/bases/external-secrets.io_externalsecrets.yaml",
        "config/crds/bases/external-secrets.io_secretstores.yaml",
    ),
    GoModule(
        "github.com/prometheus-operator/prometheus-operator",
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
    ): (
        "example/prometheus-operator-crd/monitoring.coreos.com_alertmanagerconfigs.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml",
        "example/prometheus-operator-crd/monitoring.coreos.com_prometheusrules.yaml",
    ),
}
_TEXTS: Final = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA: Final = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
    "required": ["name", "namespace"],
    "additionalProperties": False,
}
"""What we say of any resource: a definition leaves it to Kubernetes, which knows more fields."""

Schema = dict[str, Any]


class _Definitions(yaml.CSafeLoader):
    """Reads a bare `=` as the text that it is in an operator's list of matches; to YAML 1.1 it is a tag."""


_Definitions.add_constructor("tag:yaml.org,2002:value", yaml.CSafeLoader.construct_yaml_str)


@cache
def schemas() -> Mapping[tuple[str, str], Schema]:
    """Return the schema of each kind, by API version and kind.

    Raises ToolMissing where the modules cannot be had, ValueError when one is not what was pinned.
    """
    found: dict[tuple[str, str], Schema] = {}
    for module, files in MODULES.items():
        where = module.folder()
        for file in files:
            definition = yaml.load((where / file).read_bytes(), Loader=_Definitions)["spec"]  # noqa: S506 - a safe one
            for version in definition["versions"]:
                name = (f"{definition['group']}/{version['name']}", definition["names"]["kind"])
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = METADATA
                found[name] = schema
    return found


def closed(schema: Schema) -> Schema:
    """Return a schema that refuses the fields that it does not name, as deep as it names any."""
    made = dict(schema)
    if "properties" in schema:
        made["properties"] = {name: closed(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            made.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = closed(made[key])
    return made


def faults(resource: Schema, schema: Schema) -> Iterator[str]:
    """Yield what the definition of its kind has against a resource."""
    for error in Draft4Validator(schema).iter_errors(resource):
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
