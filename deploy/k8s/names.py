"""What things are called on a cluster."""

from typing import Any, Final

from deploy.services import Deployed

KAFKA: Final = "openbell-kafka"
POSTGRES: Final = "openbell-postgres"
BOOTSTRAP: Final = f"{KAFKA}-kafka-bootstrap:9093"


def labels(service: Deployed) -> dict[str, str]:
    """Return what a service's pods are known by."""
    return {"app.kubernetes.io/name": service.name, "app.kubernetes.io/part-of": "openbell"}


def named(service: Deployed, suffix: str = "") -> dict[str, Any]:
    """Return the metadata of an object of a service's."""
    return {"name": service.name + suffix, "labels": labels(service)}
