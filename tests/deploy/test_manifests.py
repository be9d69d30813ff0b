"""The manifests hold together: made from the code, narrower than what they stand on, refused where they are wrong."""

import copy
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.generate import BOARDS, FOLDER, LABEL, SOURCE
from deploy.k8s import alertmanager, check, published
from deploy.k8s.__main__ import BASE, files
from deploy.k8s.service import DRAIN_S
from deploy.services import SERVICES, Lag, consumers, topics
from deploy.tools import ToolMissing
from shared import schema
from shared.contracts.topics import dead_letter_topic
from tests.deploy.missing import without


@cache
def _built(overlay: str = "production") -> tuple[dict[str, Any], ...]:
    try:
        return tuple(check.built(overlay))
    except ToolMissing as missing:
        without(missing)


def test_replicas_of_alerts_share_what_discord_bears():
    (alerts,) = [service for service in SERVICES if service.name == "alerts"]
    assert f"\nOPENBELL_ALERTS_DISCORD_REPLICAS={alerts.most}\n" in (BASE / "settings.env").read_text()


def _all(kind: str, overlay: str = "production") -> dict[str, dict[str, Any]]:
    return {one["metadata"]["name"]: one for one in _built(overlay) if one["kind"] == kind}


def test_a_postgres_that_is_brought_back_never_archives_over_what_it_comes_from():
    spec = _all("Cluster", "recovery")["openbell-postgres"]["spec"]
    (source,), (archiver,) = spec["externalClusters"], spec["plugins"]
    assert spec["bootstrap"]["recovery"]["source"] == source["name"]
    before, after = source["plugin"]["parameters"], archiver["parameters"]
    assert before["barmanObjectName"] == after["barmanObjectName"]
    assert before["serverName"] == "openbell-postgres", "what the plugin archives under where nothing is said"
    assert after["serverName"] != before["serverName"]


def test_what_is_committed_is_what_the_code_makes():
    made = files()
    assert {name: (BASE / name).read_text() for name in made} == dict(made)
    assert {path.name for path in (BASE / "services").iterdir()} == {
        Path(name).name for name in made if name.startswith("services/")
    }


def test_every_service_is_deployed():
    assert {one.name for one in SERVICES} == set(schema.SERVICES)
    for kind in ("Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "KafkaUser", "PodMonitor"):
        assert set(schema.SERVICES) <= set(_all(kind)), kind


def test_what_a_replica_asks_for_is_what_the_page_derives():
    page = (BASE.parents[2] / "docs" / "deploy.md").read_text()
    derived = {name: int(cpu) for name, cpu in re.findall(r"^\| ([a-z]+) \| (\d+)m \|", page, re.MULTILINE)}
    assert derived == {one.name: one.cpu_m for one in SERVICES}


def test_every_topic_is_there_before_a_service_starts():
    wanted = {one.name for one in topics()}
    assert wanted >= {dead_letter_topic(name).name for one in SERVICES for name in consumers(one.name)}
    made = _all("KafkaTopic")
    assert set(made) == wanted
    assert {name: one["spec"]["partitions"] for name, one in made.items()} == {
        one.name: one.partitions for one in topics()
    }


def test_no_consumer_has_more_replicas_than_its_topic_has_partitions():
    grown = [one for one in SERVICES if isinstance(one.grows, Lag)]
    assert grown
    for one in grown:
        assert isinstance(one.grows, Lag)
        assert one.grows.consumer in consumers(one.name)
        assert one.least <= one.most <= one.grows.topic.partitions
        assert _all("ScaledObject")[one.name]["spec"]["maxReplicaCount"] == one.most


def test_what_runs_once_says_why():
    assert [one.name for one in SERVICES if (one.most == 1) != bool(one.why_one)] == []


def test_all_replicas_together_have_fewer_connections_than_postgres_takes():
    config = next(one for name, one in _all("ConfigMap").items() if name.startswith("openbell-config"))
    pool = int(config["data"]["OPENBELL_DATABASE_POOL_SIZE"])
    beside = 3  # the relay's, a listener's or a monitor's, and one that is just being made
    most = sum((one.most + 1) * (pool + beside) for one in SERVICES)  # one more while a new version rolls out
    parameters = _all("Cluster")["openbell-postgres"]["spec"]["postgresql"]["parameters"]
    operators = 20  # CloudNativePG's own, superusers, a migration
    assert most + operators <= int(parameters["max_connections"])


@pytest.mark.parametrize("name", [one.name for one in SERVICES])
def test_a_pod_may_finish_what_it_does_and_is_not_killed_for_a_database_that_is_away(name: str):
    pod = _all("Deployment")[name]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    unrouted = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= unrouted + DRAIN_S
    probes = {kind: container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/healthz", "readiness": "/readyz", "liveness": "/healthz"}
    liveness, startup = container["livenessProbe"], container["startupProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 60  # a long pause is no death
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 60


@pytest.mark.parametrize("overlay", check.OVERLAYS)
def test_pods_are_restricted_and_their_secrets_are_files(overlay: str):
    workloads = [one for one in _built(overlay) if one["kind"] in {"Deployment", "Job"}]
    assert len(workloads) == len(SERVICES) + 1
    for one in workloads:
        pod = one["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"]
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert not [env for env in container["env"] if "valueFrom" in env]  # no secret in the environment


def test_nothing_is_allowed_in_or_out_by_default_and_only_the_gateway_calls_services():
    policies = _all("NetworkPolicy")
    assert policies["deny-by-default"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for one in SERVICES:
        spec = policies[one.name]["spec"]
        into = [peer for rule in spec["ingress"] for peer in rule["from"]]
        assert {} not in into
        if one.name != "api":
            pods = [peer["podSelector"]["matchLabels"] for peer in into if "podSelector" in peer]
            assert pods == [{"app.kubernetes.io/name": "api"}]
        outside = [peer["ipBlock"] for rule in spec["egress"] for peer in rule["to"] if "ipBlock" in peer]
        assert bool(outside) == bool(one.outside)
        assert all("10.0.0.0/8" in block["except"] for block in outside)


def test_grafana_on_a_cluster_finds_every_board_and_the_source_that_they_name():
    boards = _all("ConfigMap")["openbell-dashboards"]
    assert boards["metadata"]["labels"] == {LABEL: "1"}
    assert boards["data"] == {f"{board.uid}.json": (FOLDER / f"{board.uid}.json").read_text() for board in BOARDS}
    source = _all("ConfigMap")["openbell-datasource"]
    assert source["metadata"]["labels"] == {"grafana_datasource": "1"}
    (one,) = yaml.safe_load(source["data"]["openbell.yaml"])["datasources"]
    assert one["uid"] == SOURCE.uid


def test_alerts_on_a_cluster_reach_whom_they_reach_elsewhere():
    written = yaml.safe_load(alertmanager.CONFIG.read_text())
    spec = _all("AlertmanagerConfig")["openbell"]["spec"]
    assert [one["name"] for one in spec["receivers"]] == [one["name"] for one in written["receivers"]]
    assert [one["receiver"] for one in spec["route"]["routes"]] == ["page", "ticket"]
    assert [one["matchers"] for one in spec["route"]["routes"]] == [
        [{"name": "severity", "value": value}] for value in ("page", "ticket")
    ]
    assert spec["inhibitRules"][0]["sourceMatch"][1] == {"name": "slo", "matchType": "!=", "value": ""}
    assert len(spec["inhibitRules"]) == len(written["inhibit_rules"])
    secret = _all("ExternalSecret")[alertmanager.SECRET]["spec"]["target"]["name"]
    urls = [one["slackConfigs"][0]["apiURL"] for one in spec["receivers"]]
    assert urls == [{"name": secret, "key": "page_url"}, {"name": secret, "key": "ticket_url"}]
    groups = [group for one in _all("PrometheusRule").values() for group in one["spec"]["groups"]]
    for rule in (rule for group in groups for rule in group["rules"]):
        if "alert" in rule:  # of its own namespace alone does the operator let it hear
            assert rule["labels"]["namespace"] == _all("AlertmanagerConfig")["openbell"]["metadata"]["namespace"]
    with pytest.raises(ValueError, match="does not translate templates yet"):
        alertmanager.translated({**written, "templates": ["one.tmpl"]})


@pytest.mark.parametrize("overlay", check.OVERLAYS)
def test_the_certificate_has_an_issuer_whose_challenge_gets_through(overlay: str):
    gateway = _all("Gateway", overlay)["openbell"]
    (issuer,) = _all("Issuer", overlay).values()
    assert gateway["metadata"]["annotations"] == {"cert-manager.io/issuer": issuer["metadata"]["name"]}
    if overlay == "dev":
        assert issuer["spec"] == {"selfSigned": {}}
        return
    (parent,) = issuer["spec"]["acme"]["solvers"][0]["http01"]["gatewayHTTPRoute"]["parentRefs"]
    assert (parent["kind"], parent["name"]) == ("Gateway", gateway["metadata"]["name"])
    assert parent["sectionName"] in {one["name"] for one in gateway["spec"]["listeners"] if one["protocol"] == "HTTP"}
    spec = _all("NetworkPolicy", overlay)["certificate-challenges"]["spec"]
    assert spec["podSelector"]["matchLabels"] == {"acme.cert-manager.io/http01-solver": "true"}
    assert [port["port"] for rule in spec["ingress"] for port in rule["ports"]] == [8089]
    assert "egress" not in spec


def test_every_path_that_is_allowed_names_its_ports_and_only_the_api_server_has_no_peer():
    nowhere = []
    for name, policy in _all("NetworkPolicy").items():
        for rule in (*policy["spec"].get("ingress", ()), *policy["spec"].get("egress", ())):
            assert all("port" in port for port in rule["ports"]), name
            if not rule.keys() & {"from", "to"}:
                nowhere.append((name, [port["port"] for port in rule["ports"]]))
    assert nowhere == [("kafka", [443, 6443]), ("postgres", [443, 6443])]


def _published() -> Mapping[check.Kind, dict[str, Any]]:
    try:
        return published.schemas()
    except ToolMissing as missing:
        without(missing)


@pytest.mark.parametrize("overlay", check.OVERLAYS)
def test_every_overlay_is_as_the_schemas_say(overlay: str):
    assert list(check.faults(_built(overlay), _published())) == []


def test_every_definition_that_is_fetched_holds_something():
    used = {(one["apiVersion"], one["kind"]) for one in _built()}
    assert {kind for _, kind in _published()} == {kind for _, kind in used & _published().keys()}


@pytest.mark.parametrize(
    ("kind", "path", "wrong"),
    [
        ("Deployment", ("spec", "template", "spec"), {"replicaz": 3}),
        ("NetworkPolicy", ("spec",), {"replicaz": 3}),
        ("KafkaUser", ("spec", "authorization"), {"replicaz": 3}),
        ("Cluster", ("spec", "postgresql"), {"replicaz": 3}),
        ("Cluster", ("spec",), {"instances": "three"}),
        ("Cluster", ("metadata",), {"replicaz": 3}),
        ("ScaledObject", ("spec", "scaleTargetRef"), {"replicaz": 3}),
        ("ScaledObject", ("spec", "triggers", 0, "metadata"), {"replicaz": "3"}),
        ("TriggerAuthentication", ("spec",), {"replicaz": 3}),
        ("HTTPRoute", ("spec", "rules", 0), {"replicaz": 3}),
        ("Gateway", ("spec",), {"replicaz": 3}),
        ("ObjectStore", ("spec", "configuration", "wal"), {"compression": "best"}),
        ("ScheduledBackup", ("spec",), {"method": "copy"}),
        ("ExternalSecret", ("spec", "target"), {"creationPolicy": "Ownr"}),
        ("SecretStore", ("spec", "provider", "vault"), {"replicaz": 3}),
        ("Issuer", ("spec", "acme", "solvers", 0, "http01", "gatewayHTTPRoute"), {"replicaz": 3}),
        ("AlertmanagerConfig", ("spec", "receivers", 0, "slackConfigs", 0), {"replicaz": 3}),
        ("PodMonitor", ("spec", "podMetricsEndpoints", 0), {"interval": "15 seconds"}),
        ("PrometheusRule", ("spec", "groups", 0, "rules", 0), {"expression": "up"}),
    ],
)
def test_what_no_schema_has_is_refused(kind: str, path: tuple[str | int, ...], wrong: dict[str, Any]):
    resource = copy.deepcopy(next(iter(_all(kind).values())))
    inside: Any = resource
    for step in path:
        inside = inside[step]
    inside.update(wrong)
    faults = list(check.faults([resource], _published()))
    assert faults
    where = f"{kind} {resource['metadata']['name']}: {'.'.join(map(str, path))}"
    assert all(fault.startswith(where) for fault in faults)


def test_a_kind_that_nobody_knows_is_refused():
    unknown = {"apiVersion": "example.org/v1", "kind": "Mystery", "metadata": {"name": "one"}}
    assert list(check.faults([unknown], {})) == [
        "Mystery one: neither Kubernetes nor deploy/k8s/published.py nor deploy/k8s/crds.py has such a kind"
    ]


def test_where_operators_definitions_cannot_be_had_the_rest_is_held_all_the_same():
    topic, job = copy.deepcopy(next(iter(_all("KafkaTopic").values()))), copy.deepcopy(_all("Job")["migrations"])
    topic["spec"]["replicaz"] = job["spec"]["replicaz"] = 3
    faults = list(check.faults([topic, job, _all("Cluster")["openbell-postgres"]], None))
    assert [fault.partition(" ")[0] for fault in faults] == ["KafkaTopic", "Job"]


@pytest.mark.parametrize("overlay", check.OVERLAYS)
def test_what_a_definition_lets_pass_and_its_operator_does_not(overlay: str):
    """Seconds come first in a schedule of backups: five fields are another time. A cluster begins in one way."""
    assert len(_all("Cluster", overlay)["openbell-postgres"]["spec"]["bootstrap"]) == 1
    for backup in _all("ScheduledBackup", overlay).values():
        assert len(backup["spec"]["schedule"].split()) == 6


def test_a_laptop_without_tools_hears_what_was_not_checked(tmp_path: Path):
    code = "import sys; sys.path.insert(0, '.'); from deploy.k8s import check; sys.exit(check.main())"
    lonely = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "UV_OFFLINE": "1", "UV_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BASE.parents[2], env=lonely, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "SKIPPED: the manifests were not checked: kubectl" in done.stderr
    severe = lonely | {"OPENBELL_CHECK_STRICT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=BASE.parents[2], env=severe, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "SKIPPED: the manifests were not checked: " in done.stderr
    assert "of custom resources" not in done.stderr
