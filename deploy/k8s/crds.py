"""Models of the custom resources that no published definition holds tightly: Strimzi's, and what KEDA's leaves open.

Strimzi publishes the Java classes that its definitions are made from, and not these; the other operators' resources are
held to what they publish (published.py). What would surprise you: the models are narrower than the definitions. A field
that nobody here has used yet is refused like a misspelt one; add it from the operator's reference when you need it.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

Quantity = Annotated[str, Field(pattern=r"^[0-9.]+(m|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]


class Part(BaseModel):
    """A part of a resource."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, strict=True)


class Metadata(Part):
    name: Name
    namespace: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Resource(Part):
    api_version: str
    kind: str
    metadata: Metadata


class Selector(Part):
    match_labels: Annotated[dict[str, str], Field(min_length=1)]


class Amounts(Part):
    cpu: Quantity
    memory: Quantity


class Resources(Part):
    requests: Amounts
    limits: Amounts


# Of Strimzi


class Volume(Part):
    id: Annotated[int, Field(ge=0)]
    type: Literal["persistent-claim", "ephemeral"]
    size: Quantity
    kraft_metadata: Literal["shared"] | None = None
    delete_claim: bool = False


class Storage(Part):
    type: Literal["jbod"]
    volumes: Annotated[list[Volume], Field(min_length=1)]


class NodePoolSpec(Part):
    replicas: Annotated[int, Field(ge=1)]
    roles: Annotated[list[Literal["controller", "broker"]], Field(min_length=1)]
    storage: Storage
    resources: Resources


class KafkaNodePool(Resource):
    spec: NodePoolSpec


class Typed(Part):
    type: str


class Peer(Part):
    pod_selector: Selector | None = None
    namespace_selector: Selector | None = None


class Listener(Part):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]{1,11}$")]
    port: Annotated[int, Field(ge=9092)]
    type: Literal["internal"]
    tls: Literal[True]
    authentication: Typed
    network_policy_peers: Annotated[list[Peer], Field(min_length=1)]


class Rack(Part):
    type: Literal["topology-label"]
    topology_key: str


class Allowed(Part):
    allow_list: list[str]


class MetricsConfig(Part):
    type: Literal["strimziMetricsReporter"]
    values: Allowed


class Brokers(Part):
    version: Annotated[str, Field(pattern=r"^4\.[0-9]+\.[0-9]+$")]
    rack: Rack | None = None
    listeners: list[Listener]
    authorization: Typed
    config: dict[str, str | int]
    metrics_config: MetricsConfig


class EntityOperator(Part):
    topic_operator: dict[str, Any]
    user_operator: dict[str, Any]


class KafkaSpec(Part):
    kafka: Brokers
    entity_operator: EntityOperator


class Kafka(Resource):
    spec: KafkaSpec


class TopicSpec(Part):
    partitions: Annotated[int, Field(ge=1)]
    replicas: Annotated[int, Field(ge=1, le=3)]
    config: dict[str, str | int]


class KafkaTopic(Resource):
    spec: TopicSpec


class AclResource(Part):
    type: Literal["topic", "group"]
    name: str
    pattern_type: Literal["literal", "prefix"]


class Acl(Part):
    resource: AclResource
    operations: Annotated[list[Literal["Read", "Write", "Describe"]], Field(min_length=1)]


class Authorization(Part):
    type: Literal["simple"]
    acls: Annotated[list[Acl], Field(min_length=1)]


class UserAuthentication(Part):
    type: Literal["scram-sha-512"]


class UserSpec(Part):
    authentication: UserAuthentication
    authorization: Authorization


class KafkaUser(Resource):
    spec: UserSpec


# Of KEDA, whose definition leaves open what a trigger says


class Named(Part):
    name: Name


class ScaleTarget(Part):
    name: Name
    env_source_container_name: str


class KafkaTrigger(Part):
    bootstrap_servers: str
    consumer_group: str
    topic: str
    lag_threshold: Annotated[str, Field(pattern="^[1-9][0-9]*$")]
    exclude_persistent_lag: Literal["true", "false"]
    sasl: Literal["scram_sha512"]
    tls: Literal["enable"]


class Trigger(Part):
    type: Literal["kafka"]
    metadata: KafkaTrigger
    authentication_ref: Named


class ScaledObjectSpec(Part):
    scale_target_ref: ScaleTarget
    min_replica_count: Annotated[int, Field(ge=1)]
    max_replica_count: Annotated[int, Field(ge=1)]
    polling_interval: Annotated[int, Field(ge=1)]
    cooldown_period: Annotated[int, Field(ge=1)]
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class ScaledObject(Resource):
    spec: ScaledObjectSpec


MODELS: Final = {
    ("kafka.strimzi.io/v1", "Kafka"): Kafka,
    ("kafka.strimzi.io/v1", "KafkaNodePool"): KafkaNodePool,
    ("kafka.strimzi.io/v1", "KafkaTopic"): KafkaTopic,
    ("kafka.strimzi.io/v1", "KafkaUser"): KafkaUser,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
}
"""By API version and kind."""
