"""The manifests of one service: what runs it, spreads it, scales it, watches it, and whom it may talk to.

What would surprise you: liveness looks at nothing but the event loop. A database that is away makes a pod unready; to
restart it would only add a storm of connections. The grace period follows from the service's own StopBudget.
"""

from collections.abc import Sequence
from typing import Any, Final

from deploy.k8s import network, scaling
from deploy.k8s.names import BOOTSTRAP, KAFKA, labels, named
from deploy.services import PORT, Deployed
from shared.service import StopBudget

Object = dict[str, Any]

STORE: Final = "openbell"
"""The SecretStore; each overlay says what stands behind it."""
UNROUTED_S: Final = 5
"""How long a pod goes on after it was told to end, until nobody sends it requests any more."""
SPARE_S: Final = 5
_BUDGET: Final = StopBudget()
DRAIN_S: Final = max(_BUDGET.http_s, _BUDGET.drain_s) + _BUDGET.relay_s + _BUDGET.close_s
GRACE_S: Final = UNROUTED_S + int(DRAIN_S) + SPARE_S

RESTRICTED: Final[Object] = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
POD_SECURITY: Final[Object] = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "runAsGroup": 10001,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def objects(service: Deployed, acls: Sequence[Object]) -> list[Object]:
    """Return all objects of a service. `acls` are what its Kafka user may do."""
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": named(service),
            "automountServiceAccountToken": False,
        },
        _external_secret(service),
        _kafka_user(service, acls),
        _deployment(service),
        _service(service),
        _disruption_budget(service),
        *scaling.objects(service),
        network.policy(service),
        _pod_monitor(service),
    ]


def _external_secret(service: Deployed) -> Object:
    """Each secret setting is a file of its name, so that no environment shows it (shared/settings.py reads them)."""
    return {
        "apiVersion": "external-secrets.io/v1",
        "kind": "ExternalSecret",
        "metadata": named(service, "-settings"),
        "spec": {
            "refreshInterval": "1h0m0s",
            "secretStoreRef": {"kind": "SecretStore", "name": STORE},
            "target": {"name": f"{service.name}-settings", "creationPolicy": "Owner"},
            "dataFrom": [{"extract": {"key": "shared"}}, {"extract": {"key": service.name}}],
        },
    }


def _kafka_user(service: Deployed, acls: Sequence[Object]) -> Object:
    metadata = named(service)
    metadata["labels"] = {**metadata["labels"], "strimzi.io/cluster": KAFKA}
    return {
        "apiVersion": "kafka.strimzi.io/v1",
        "kind": "KafkaUser",
        "metadata": metadata,
        "spec": {
            "authentication": {"type": "scram-sha-512"},
            "authorization": {"type": "simple", "acls": list(acls)},
        },
    }


def _deployment(service: Deployed) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": named(service),
        "spec": {
            **({} if service.grows else {"replicas": service.least}),  # else the autoscaler says how many
            "revisionHistoryLimit": 5,
            "progressDeadlineSeconds": 300,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "selector": {"matchLabels": {"app.kubernetes.io/name": service.name}},
            "template": {"metadata": {"labels": labels(service)}, "spec": _pod(service)},
        },
    }


def _pod(service: Deployed) -> Object:
    return {
        "serviceAccountName": service.name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
        "terminationGracePeriodSeconds": GRACE_S,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": service.name}},
                "matchLabelKeys": ["pod-template-hash"],
            }
            for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
        ],
        "containers": [_container(service)],
        "volumes": [
            {"name": "scratch", "emptyDir": {"sizeLimit": "64Mi"}},
            {"name": "secrets", "projected": {"defaultMode": 0o444, "sources": _secrets(service)}},
            {"name": "authorities", "projected": {"defaultMode": 0o444, "sources": _authorities()}},
        ],
    }


def _container(service: Deployed) -> Object:
    return {
        "name": "service",
        "image": "openbell",
        "imagePullPolicy": "IfNotPresent",
        "env": [
            {"name": "SERVICE", "value": service.name},
            {"name": "OPENBELL_KAFKA_BOOTSTRAP", "value": BOOTSTRAP},
            {"name": "OPENBELL_KAFKA_USER", "value": service.name},
        ],
        "envFrom": [{"configMapRef": {"name": "openbell-config"}}],
        "ports": [{"name": "http", "containerPort": PORT}],
        "resources": {
            "requests": {"cpu": f"{service.cpu_m}m", "memory": f"{service.memory_mib}Mi"},
            "limits": {"cpu": "2", "memory": f"{service.memory_limit_mib}Mi"},
        },
        "securityContext": RESTRICTED,
        "startupProbe": _probe("/healthz", every_s=2, timeout_s=2, failures=60),
        "readinessProbe": _probe("/readyz", every_s=5, timeout_s=4, failures=3),
        "livenessProbe": _probe("/healthz", every_s=10, timeout_s=5, failures=6),
        "lifecycle": {"preStop": {"sleep": {"seconds": UNROUTED_S}}},
        "volumeMounts": [
            {"name": "scratch", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
            {"name": "secrets", "mountPath": "/run/secrets", "readOnly": True},
            {"name": "authorities", "mountPath": "/etc/openbell", "readOnly": True},
        ],
    }


def _probe(path: str, *, every_s: int, timeout_s: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": every_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _secrets(service: Deployed) -> list[Object]:
    password = {"key": "password", "path": "OPENBELL_KAFKA_PASSWORD"}
    return [
        {"secret": {"name": f"{service.name}-settings"}},
        {"secret": {"name": service.name, "items": [password]}},  # made by Strimzi for the KafkaUser
    ]


def _authorities() -> list[Object]:
    """The certificates that Kafka's and Postgres's are signed with, without the keys that lie beside them."""
    return [
        {"secret": {"name": name, "items": [{"key": "ca.crt", "path": path}]}}
        for name, path in ((f"{KAFKA}-cluster-ca-cert", "kafka.crt"), ("openbell-postgres-ca", "postgres.crt"))
    ]


def _service(service: Deployed) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": named(service),
        "spec": {
            "selector": {"app.kubernetes.io/name": service.name},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http", "appProtocol": "http"}],
        },
    }


def _disruption_budget(service: Deployed) -> Object:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": named(service),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {"app.kubernetes.io/name": service.name}},
        },
    }


def _pod_monitor(service: Deployed) -> Object:
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": named(service),
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": service.name}},
            "jobLabel": "app.kubernetes.io/part-of",  # job and app as in deploy/prometheus/prometheus.yml
            "podMetricsEndpoints": [
                {
                    "port": "http",
                    "path": "/metrics",
                    "interval": "15s",
                    "relabelings": [
                        {"sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_name"], "targetLabel": "app"}
                    ],
                }
            ],
        },
    }
