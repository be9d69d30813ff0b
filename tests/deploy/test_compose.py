"""docker-compose.yml runs every service, with the limits and secrets that it should have."""

import base64
import fnmatch
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from deploy.docker import check, rotate, secrets
from deploy.k8s.service import DRAIN_S
from deploy.local.kafka import KAFKA_VERSION
from deploy.services import PORT, SERVICES
from deploy.tools import ToolMissing
from services.alerts.settings import AlertsSettings
from services.api.settings import ApiSettings
from services.broker.settings import BrokerSettings
from services.payment.settings import PaymentSettings
from shared.settings import SharedSettings
from tests.deploy.missing import without

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final[Mapping[str, Any]] = yaml.safe_load((ROOT / check.COMPOSE).read_text())
RUN: Final[Mapping[str, Any]] = COMPOSE["services"]
PROMETHEUS: Final = "deploy/prometheus/prometheus.yml"
OURS: Final = [one.name for one in SERVICES]


@pytest.mark.parametrize("name", OURS)
def test_every_service_runs_and_waits_for_migrations_and_kafka(name: str):
    service = RUN[name]
    assert service["environment"]["SERVICE"] == name
    assert service["depends_on"] == {
        "migrations": {"condition": "service_completed_successfully"},
        "kafka": {"condition": "service_healthy"},
    }
    assert int(service["stop_grace_period"].removesuffix("s")) >= DRAIN_S
    assert service["read_only"] is True
    assert "healthcheck" not in service  # the image's own: it asks /readyz


@pytest.mark.parametrize("name", RUN)
def test_nothing_runs_without_limits_a_profile_and_a_pinned_image(name: str):
    service = RUN[name]
    assert set(service["profiles"]) <= set(check.PROFILES)
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}
    assert service["cap_drop"] == ["ALL"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert service["image"] in {*COMPOSE["x-images"], "openbell:${TAG:-local}"}
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    if name not in {*OURS, "migrations"}:
        assert service["healthcheck"]["test"]


def test_the_kafka_is_the_one_that_tests_know():
    assert f"apache/kafka:{KAFKA_VERSION}" in COMPOSE["x-images"]
    assert all(re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?(-bookworm)?", image) for image in COMPOSE["x-images"])


def test_prometheus_asks_every_service_and_the_volumes_that_fill_the_disk():
    jobs = {one["job_name"]: one for one in yaml.safe_load((ROOT / PROMETHEUS).read_text())["scrape_configs"]}
    assert jobs["openbell"]["dns_sd_configs"][0]["names"] == OURS
    assert jobs["openbell"]["dns_sd_configs"][0]["port"] == PORT
    others = [target for job in jobs.values() for one in job.get("static_configs", []) for target in one["targets"]]
    assert {target.partition(":")[0] for target in others} <= {*RUN, "localhost"}
    seen = RUN["node-exporter"]["volumes"]
    assert all(mount.endswith(":ro") for mount in seen)
    assert {f"{name}:/volumes/{name}:ro" for name in ("postgres", "kafka", "prometheus")} == set(seen)


def test_secrets_are_files_that_are_made_once(tmp_path: Path):
    secrets.main(tmp_path / "secrets")
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert {f"deploy/docker/secrets/{name}" for name in made} == {one["file"] for one in COMPOSE["secrets"].values()}
    for name in ("OPENBELL_BROKER_CREDENTIAL_KEYS", "OPENBELL_ALERTS_TARGET_KEYS"):
        assert len(base64.b64decode(made[name].partition(":")[2])) == 32
    assert made["postgres_password"] in made["admin_database_url"]
    assert (tmp_path / "secrets").stat().st_mode & 0o077 == 0
    secrets.main(tmp_path / "secrets")
    assert {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()} == made
    for service in RUN.values():
        assert not [name for name in service.get("environment", {}) if re.search("SECRET|PASSWORD$|KEYS?$", name)]


def test_every_secret_of_the_code_is_a_file_of_the_services_that_read_it():
    """Kafka asks for no password here, and backups go to no bucket."""
    kinds = {"api": ApiSettings, "alerts": AlertsSettings, "broker": BrokerSettings, "payment": PaymentSettings}
    for service, settings in {**dict.fromkeys(OURS, SharedSettings), **kinds}.items():
        secret = {
            f"{settings.model_config.get('env_prefix')}{name}".upper()
            for name, field in settings.model_fields.items()
            if "SecretStr" in str(field.annotation)
        }
        assert secret
        assert secret - {"OPENBELL_KAFKA_PASSWORD"} <= set(RUN[service]["secrets"])


def test_every_secret_of_the_page_is_a_file_of_the_services_that_it_names():
    rows = re.findall(r"^\|.*\|$", (ROOT / "docs" / "secrets.md").read_text(), re.MULTILINE)
    named = {
        pattern: (OURS if row.split("|")[3].strip() == "all" else [row.split("|")[3].strip()])
        for row in rows
        for pattern in re.findall(r"`(OPENBELL_[A-Z_*]+)`", row.split("|")[2])
    }
    assert len(named) >= 15
    for pattern, services in named.items():
        for service in services:
            assert fnmatch.filter(RUN[service]["secrets"], pattern), f"{pattern} is no file of {service}"
    for name in (*rotate.SEVERAL, *secrets.MADE_HERE, *secrets.GIVEN):
        assert rotate.readers(name), f"nothing reads {name}"
        assert any(fnmatch.fnmatch(name, pattern) for pattern in named) or name == "OPENBELL_BROKER_OAUTH_VENUES"


def test_a_secret_that_nobody_gave_is_none(tmp_path: Path):
    secrets.main(tmp_path)
    payment = PaymentSettings(_secrets_dir=tmp_path)  # pyright: ignore[reportCallIssue] - of pydantic-settings
    assert (payment.stripe_key, payment.stripe_webhook_secrets, payment.crypto_urls) == (None, None, {})
    broker = BrokerSettings(_secrets_dir=tmp_path)  # pyright: ignore[reportCallIssue]
    assert (broker.callback_secrets, broker.oauth_venues) == ({}, ())
    api = ApiSettings(_secrets_dir=tmp_path)  # pyright: ignore[reportCallIssue]
    assert api.jwt_secret is None
    assert api.key_secret.get_secret_value() == (tmp_path / "OPENBELL_API_KEY_SECRET").read_text()
    alerts = AlertsSettings(_secrets_dir=tmp_path)  # pyright: ignore[reportCallIssue]
    assert (alerts.smtp_password, alerts.vapid_private_key, alerts.sendgrid_webhook_key) == (None, None, None)


def test_compose_itself_reads_it_and_refuses_what_it_does_not_know(tmp_path: Path):
    broken = tmp_path / check.COMPOSE
    broken.write_text((ROOT / check.COMPOSE).read_text().replace("    healthcheck:", "    healthchek:"))
    try:
        assert check.run(check.reader()) is None
        said = check.run(check.reader(broken))
    except ToolMissing as missing:
        without(missing)
    assert said is not None
    assert "healthchek" in said
