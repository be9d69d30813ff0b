"""`make manifests`: write what is the same for every service into deploy/k8s/base. A test holds the files to the code.

python -m deploy.k8s
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from deploy.k8s import alertmanager, kafka, service
from deploy.services import GATEWAY, SERVICES, topics

BASE: Final = Path(__file__).parent / "base"
RULES: Final = BASE.parents[1] / "prometheus" / "rules"
_HEAD: Final = (
    "# Made by `make manifests` (deploy/services.py, deploy/prometheus/rules, deploy/alertmanager); change it there.\n"
)


class _Plain(yaml.SafeDumper):
    """Writes what is there twice twice: no anchors."""

    def ignore_aliases(self, data: object) -> bool:
        del data
        return True


def files() -> Mapping[str, str]:
    """Return path below the base -> content."""
    made = {f"services/{one.name}.yaml": _yaml(service.objects(one, kafka.acls(one))) for one in SERVICES}
    upstreams = {one.name: one.address for one in SERVICES if one is not GATEWAY}
    resources = sorted(Path(name).name for name in made)
    return {
        **made,
        "services/kustomization.yaml": _yaml([_kustomization(resources)]),
        "topics.yaml": _yaml(kafka.topic(one) for one in topics()),
        "alertmanager.yaml": _yaml(alertmanager.objects()),
        "rules.yaml": _yaml(_rules(path) for path in sorted(RULES.glob("*.yml"))),
        "upstreams.env": f"{_HEAD}OPENBELL_UPSTREAMS={json.dumps(upstreams, separators=(',', ':'))}\n",
    }


def _rules(path: Path) -> dict[str, Any]:
    """Return the alert rules that Prometheus in compose reads as the operator's resource."""
    metadata = {"name": f"openbell-{path.stem}"}
    spec = alertmanager.rules(yaml.safe_load(path.read_text()))
    return {"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": metadata, "spec": spec}


def _kustomization(resources: list[str]) -> dict[str, Any]:
    return {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": resources}


def _yaml(objects: Iterable[Mapping[str, Any]]) -> str:
    text = yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=120, explicit_start=True)
    return _HEAD + text


def main() -> int:
    """Write all files, and take away those of services that are gone."""
    made = files()
    for gone in {path.name for path in (BASE / "services").glob("*.yaml")} - {Path(name).name for name in made}:
        (BASE / "services" / gone).unlink()
    for name, content in made.items():
        (BASE / name).write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
