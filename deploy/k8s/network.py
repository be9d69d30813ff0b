"""Who may talk to whom. Everything else is refused (base/network.yaml denies by default); each path has its reason."""

from typing import Any, Final

from deploy.k8s.names import KAFKA, POSTGRES, named
from deploy.services import GATEWAY, PORT, SERVICES, Deployed

Object = dict[str, Any]

PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10")
"""What no service reaches by an address that somebody gave it: the cluster itself, and a cloud's metadata."""
TRACES_PORT: Final = 4318


def policy(service: Deployed) -> Object:
    """Return the one policy of a service."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": named(service),
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": service.name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [_from(_namespace("monitoring")), _from(_caller(service))],
            "egress": [
                _names(),
                _to(_pods({"cnpg.io/cluster": POSTGRES}), ports=(5432,)),
                _to(_pods({"strimzi.io/cluster": KAFKA, "strimzi.io/kind": "Kafka"}), ports=(9093,)),
                _to(_namespace("monitoring"), ports=(TRACES_PORT,)),
                *_onward(service),
                *_outside(service),
            ],
        },
    }


def _names() -> Object:
    where = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    }
    return {"to": [where], "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]}


def _caller(service: Deployed) -> Object:
    """What ends TLS calls the gateway; the gateway calls the others."""
    return _namespace("gateway") if service is GATEWAY else _pods({"app.kubernetes.io/name": GATEWAY.name})


def _onward(service: Deployed) -> list[Object]:
    """The gateway calls every service; nobody else calls one."""
    if service is not GATEWAY:
        return []
    others = [_pods({"app.kubernetes.io/name": one.name}) for one in SERVICES if one is not GATEWAY]
    return [_to(*others, ports=(PORT,))]


def _outside(service: Deployed) -> list[Object]:
    if not service.outside:
        return []
    internet = {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE)}}
    return [_to(internet, ports=tuple(service.outside))]


def _from(*peers: Object) -> Object:
    return {"from": list(peers), "ports": [{"protocol": "TCP", "port": PORT}]}


def _to(*peers: Object, ports: tuple[int, ...]) -> Object:
    return {"to": list(peers), "ports": [{"protocol": "TCP", "port": port} for port in ports]}


def _pods(labels: dict[str, str]) -> Object:
    return {"podSelector": {"matchLabels": labels}}


def _namespace(name: str) -> Object:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
