"""The names of what operators' exporters tell. None of them has run here: this is what they publish or document.

CloudNativePG publishes its queries in its Go module, from which names and labels follow; those of its collector are in
its documentation's list. Strimzi's reporter makes a name of each of Kafka's documented MBeans: group, type and name,
in small letters. What no test can show is that such an exporter really answers so.
"""

from collections.abc import Mapping
from typing import Any, Final

import yaml

from deploy.k8s import published

COLLECTOR: Final[Mapping[str, set[str]]] = {"cnpg_collector_up": {"cluster"}}
MBEANS: Final = (
    ("kafka.server", "ReplicaManager", "UnderReplicatedPartitions"),
    ("kafka.server", "ReplicaManager", "LeaderCount"),
    ("kafka.server", "ReplicaManager", "PartitionCount"),
    ("kafka.controller", "KafkaController", "OfflinePartitionsCount"),
    ("kafka.controller", "KafkaController", "ActiveControllerCount"),
)
"""Gauges without labels of their own, of "Monitoring" in Kafka's documentation."""


def cnpg() -> dict[str, set[str]]:
    """Return the labels of each metric of CloudNativePG's, by name. Raises ToolMissing."""
    (module,) = [one for one in published.MODULES if one.path.endswith("/cloudnative-pg")]
    written = (module.folder() / "config" / "manager" / "default-monitoring.yaml").read_text()
    (config,) = [one for one in yaml.safe_load_all(written) if one and one["kind"] == "ConfigMap"]
    queries: dict[str, Any] = yaml.safe_load(config["data"]["queries"])
    found: dict[str, set[str]] = dict(COLLECTOR)
    for name, query in queries.items():
        columns = [(column, about["usage"]) for one in query["metrics"] for column, about in one.items()]
        labels = {column for column, usage in columns if usage == "LABEL"}
        found |= {f"cnpg_{name}_{column}": labels for column, usage in columns if usage != "LABEL"}
    return found


def kafka() -> dict[str, set[str]]:
    """Return the same of Kafka's."""
    return {f"{group}_{kind}_{name}".replace(".", "_").lower(): set() for group, kind, name in MBEANS}
