"""How a service grows: the gateway with its work, consumers with what they are behind.

What would surprise you: no consumer has more replicas than its topic has partitions, for the others would stand idle.
"""

from typing import Any

from deploy.k8s.names import BOOTSTRAP, KAFKA, named
from deploy.services import Busy, Deployed, Lag

Object = dict[str, Any]


def objects(service: Deployed) -> list[Object]:
    """Return what scales a service; nothing for one that does not grow."""
    match service.grows:
        case Busy(percent):
            return [_by_work(service, percent)]
        case Lag() as lag:
            return [_credentials(service), _by_lag(service, lag)]
        case None:
            return []


def _by_work(service: Deployed, percent: int) -> Object:
    target = {"type": "Utilization", "averageUtilization": percent}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": named(service),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name},
            "minReplicas": service.least,
            "maxReplicas": service.most,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


def _credentials(service: Deployed) -> Object:
    secrets = (("password", service.name, "password"), ("ca", f"{KAFKA}-cluster-ca-cert", "ca.crt"))
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "TriggerAuthentication",
        "metadata": named(service),
        "spec": {
            "env": [{"parameter": "username", "name": "OPENBELL_KAFKA_USER", "containerName": "service"}],
            "secretTargetRef": [{"parameter": parameter, "name": name, "key": key} for parameter, name, key in secrets],
        },
    }


def _by_lag(service: Deployed, lag: Lag) -> Object:
    trigger = {
        "type": "kafka",
        "metadata": {
            "bootstrapServers": BOOTSTRAP,
            "consumerGroup": lag.consumer,
            "topic": lag.topic.name,
            "lagThreshold": str(lag.records),
            "excludePersistentLag": "true",  # a partition that stands still (a fuse) is not helped by a replica
            "sasl": "scram_sha512",
            "tls": "enable",
        },
        "authenticationRef": {"name": service.name},
    }
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": named(service),
        "spec": {
            "scaleTargetRef": {"name": service.name, "envSourceContainerName": "service"},
            "minReplicaCount": service.least,
            "maxReplicaCount": service.most,
            "pollingInterval": 15,
            "cooldownPeriod": 300,
            "triggers": [trigger],
        },
    }
