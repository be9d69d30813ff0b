"""Topics and what each service may do with them, from shared/contracts/topics.py, the cards and the consumers."""

from typing import Any

from deploy import services
from deploy.k8s.names import KAFKA
from deploy.services import Deployed
from shared.contracts.topics import Topic

Object = dict[str, Any]


def topic(one: Topic) -> Object:
    """Return the KafkaTopic of one topic, kept by three brokers, two of which have to have each record."""
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaTopic",
        "metadata": {"name": one.name, "labels": {"strimzi.io/cluster": KAFKA}},
        "spec": {
            "partitions": one.partitions,
            "replicas": 3,
            "config": {
                "cleanup.policy": "compact" if one.compact else "delete",
                "max.message.bytes": one.max_message_bytes,
                "min.insync.replicas": 2,
                "retention.ms": one.retention_ms,
            },
        },
    }


def acls(service: Deployed) -> list[Object]:
    """Return what a service may do: read what its consumers handle, write what it tells, see which topics there are.

    No service may create or alter anything: topics are there before it starts.
    """
    reads = [_on("topic", one.name, "Read") for one in services.reads(service.name)]
    writes = [_on("topic", one.name, "Write") for one in services.writes(service.name)]
    groups = [_on("group", name, "Read") for name in services.consumers(service.name)]
    return [_on("topic", "*", "Describe"), *reads, *writes, *groups]


def _on(kind: str, name: str, operation: str) -> Object:
    return {"resource": {"type": kind, "name": name, "patternType": "literal"}, "operations": [operation]}
