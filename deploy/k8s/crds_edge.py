"""Models of custom resources, continued: secrets from outside, the way in, and what watches. See crds.py."""

from typing import Annotated, Final, Literal

from pydantic import Field

from deploy.k8s.crds import Duration, Name, Part, Port, Resource, Selector

# Of the External Secrets Operator


class StoreRef(Part):
    kind: Literal["SecretStore"]
    name: Name


class Target(Part):
    name: Name
    creation_policy: Literal["Owner"]


class Extract(Part):
    key: str


class DataFrom(Part):
    extract: Extract


class RemoteRef(Part):
    key: str
    property: str


class Data(Part):
    secret_key: str
    remote_ref: RemoteRef


class ExternalSecretSpec(Part):
    refresh_interval: Duration
    secret_store_ref: StoreRef
    target: Target
    data_from: list[DataFrom] | None = None
    data: list[Data] | None = None


class ExternalSecret(Resource):
    spec: ExternalSecretSpec


class ServiceAccountRef(Part):
    name: Name


class KubernetesAuth(Part):
    mount_path: str
    role: str
    service_account_ref: ServiceAccountRef


class VaultAuth(Part):
    kubernetes: KubernetesAuth


class Vault(Part):
    server: Annotated[str, Field(pattern="^https://")]
    path: str
    version: Literal["v1", "v2"]
    auth: VaultAuth


class FakeData(Part):
    key: str
    value: str


class Fake(Part):
    data: list[FakeData]


class Provider(Part):
    vault: Vault | None = None
    fake: Fake | None = None


class SecretStoreSpec(Part):
    provider: Provider


class SecretStore(Resource):
    spec: SecretStoreSpec


# Of the Gateway API


class CertificateRef(Part):
    kind: Literal["Secret"]
    name: Name


class ListenerTls(Part):
    mode: Literal["Terminate"]
    certificate_refs: Annotated[list[CertificateRef], Field(min_length=1)]


class RouteNamespaces(Part):
    from_: Literal["Same"] = Field(alias="from")


class AllowedRoutes(Part):
    namespaces: RouteNamespaces


class GatewayListener(Part):
    name: Name
    port: Port
    protocol: Literal["HTTP", "HTTPS"]
    hostname: str | None = None
    tls: ListenerTls | None = None
    allowed_routes: AllowedRoutes


class GatewaySpec(Part):
    gateway_class_name: Name
    listeners: Annotated[list[GatewayListener], Field(min_length=1)]


class Gateway(Resource):
    spec: GatewaySpec


class ParentRef(Part):
    name: Name
    section_name: Name


class PathMatch(Part):
    type: Literal["PathPrefix", "Exact"]
    value: str


class Match(Part):
    path: PathMatch


class BackendRef(Part):
    name: Name
    port: Port


class Redirect(Part):
    scheme: Literal["https"]
    status_code: Literal[301, 302]


class Filter(Part):
    type: Literal["RequestRedirect"]
    request_redirect: Redirect


class Timeouts(Part):
    request: Duration


class RouteRule(Part):
    matches: list[Match] | None = None
    filters: list[Filter] | None = None
    backend_refs: list[BackendRef] | None = None
    timeouts: Timeouts | None = None


class HTTPRouteSpec(Part):
    parent_refs: Annotated[list[ParentRef], Field(min_length=1)]
    rules: Annotated[list[RouteRule], Field(min_length=1)]


class HTTPRoute(Resource):
    spec: HTTPRouteSpec


# Of the Prometheus operator


class Relabeling(Part):
    source_labels: Annotated[list[str], Field(min_length=1)]
    target_label: str


class Endpoint(Part):
    port: str
    path: str
    interval: Duration
    relabelings: list[Relabeling] | None = None


class PodMonitorSpec(Part):
    selector: Selector
    job_label: str | None = None
    pod_metrics_endpoints: Annotated[list[Endpoint], Field(min_length=1)]


class PodMonitor(Resource):
    spec: PodMonitorSpec


class Rule(Part):
    alert: str | None = None
    record: str | None = None
    expr: str
    for_: Duration | None = Field(default=None, alias="for")
    keep_firing_for: Duration | None = Field(default=None, alias="keep_firing_for")
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class RuleGroup(Part):
    name: str
    interval: Duration | None = None
    rules: Annotated[list[Rule], Field(min_length=1)]


class PrometheusRuleSpec(Part):
    groups: Annotated[list[RuleGroup], Field(min_length=1)]


class PrometheusRule(Resource):
    spec: PrometheusRuleSpec


EDGE: Final[dict[str, tuple[type[Resource], ...]]] = {
    "external-secrets.io/v1": (ExternalSecret, SecretStore),
    "monitoring.coreos.com/v1": (PodMonitor, PrometheusRule),
    "gateway.networking.k8s.io/v1": (Gateway, HTTPRoute),
}
