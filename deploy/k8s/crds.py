"""Models of the custom resources that we use: what we set, from their published definitions; all else is refused.

What would surprise you: they are narrower than the definitions. A field that nobody here has used yet is refused like a
misspelt one; add it from the operator's reference when you need it.
"""

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

Quantity = Annotated[str, Field(pattern=r"^[0-9.]+(m|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Duration = Annotated[str, Field(pattern=r"^([0-9]+(h|m|s|ms))+$")]


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


# Of CloudNativePG and its plugin for backups


class InitDb(Part):
    database: str
    owner: str
    encoding: str
    locale_c_type: str = Field(alias="localeCType")
    locale_collate: str


class RecoveryTarget(Part):
    target_time: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)$")]


class Recovery(Part):
    source: str
    database: str
    owner: str
    recovery_target: RecoveryTarget | None = None


class Bootstrap(Part):
    initdb: InitDb | None = None
    recovery: Recovery | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.initdb is None) == (self.recovery is None):
            raise ValueError("a cluster begins in one way: initdb or recovery")
        return self


class Role(Part):
    name: str
    ensure: Literal["present", "absent"]
    login: bool
    createrole: bool


class Managed(Part):
    roles: list[Role]


class Synchronous(Part):
    method: Literal["any", "first"]
    number: Annotated[int, Field(ge=1)]
    data_durability: Literal["required", "preferred"]


class PostgresConfiguration(Part):
    parameters: dict[str, str]
    synchronous: Synchronous | None = None


class Disk(Part):
    size: Quantity


class Affinity(Part):
    enable_pod_anti_affinity: bool
    pod_anti_affinity_type: Literal["required", "preferred"]
    topology_key: str


class Plugin(Part):
    name: str
    is_wal_archiver: bool = Field(alias="isWALArchiver")
    parameters: dict[str, str]


class SourcePlugin(Part):
    name: str
    parameters: dict[str, str]


class ExternalCluster(Part):
    name: str
    plugin: SourcePlugin


class ClusterSpec(Part):
    instances: Annotated[int, Field(ge=1)]
    image_name: str
    primary_update_strategy: Literal["unsupervised", "supervised"]
    bootstrap: Bootstrap
    managed: Managed
    postgresql: PostgresConfiguration
    storage: Disk
    wal_storage: Disk
    resources: Resources
    affinity: Affinity
    plugins: list[Plugin] = []
    external_clusters: list[ExternalCluster] = []


class Cluster(Resource):
    spec: ClusterSpec


class Named(Part):
    name: Name


class ScheduledBackupSpec(Part):
    schedule: Annotated[str, Field(pattern=r"^(\S+ ){5}\S+$")]  # six fields, seconds first
    immediate: bool
    backup_owner_reference: Literal["none", "self", "cluster"]
    method: Literal["plugin", "volumeSnapshot"]
    cluster: Named
    plugin_configuration: Named


class ScheduledBackup(Resource):
    spec: ScheduledBackupSpec


class SecretKey(Part):
    name: Name
    key: str


class S3Credentials(Part):
    access_key_id: SecretKey
    secret_access_key: SecretKey


class WalBackup(Part):
    compression: Literal["gzip", "zstd", "lz4", "snappy"]
    max_parallel: Annotated[int, Field(ge=1)]


class DataBackup(Part):
    compression: Literal["gzip", "bzip2", "snappy"]


class StoreConfiguration(Part):
    destination_path: Annotated[str, Field(pattern="^s3://")]
    s3_credentials: S3Credentials
    wal: WalBackup
    data: DataBackup


class ObjectStoreSpec(Part):
    retention_policy: Annotated[str, Field(pattern=r"^[1-9][0-9]*[dwm]$")]
    configuration: StoreConfiguration


class ObjectStore(Resource):
    spec: ObjectStoreSpec


# Of KEDA


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


class FromEnv(Part):
    parameter: str
    name: str
    container_name: str


class FromSecret(Part):
    parameter: str
    name: Name
    key: str


class TriggerAuthenticationSpec(Part):
    env: list[FromEnv]
    secret_target_ref: list[FromSecret]


class TriggerAuthentication(Resource):
    spec: TriggerAuthenticationSpec


MODELS: Final[dict[str, tuple[type[Resource], ...]]] = {
    "kafka.strimzi.io/v1": (Kafka, KafkaNodePool, KafkaTopic, KafkaUser),
    "postgresql.cnpg.io/v1": (Cluster, ScheduledBackup),
    "barmancloud.cnpg.io/v1": (ObjectStore,),
    "keda.sh/v1alpha1": (ScaledObject, TriggerAuthentication),
}
