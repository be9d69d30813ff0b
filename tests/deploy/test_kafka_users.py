"""Each service can do its work as the Kafka user that its manifest makes, over TLS, and nothing that is another's."""

import datetime as dt
import ipaddress
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from aiokafka.protocol.admin import CreateAclsRequest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deploy.k8s.kafka import acls
from deploy.local import kafka, processes
from deploy.services import SERVICES, Deployed, topics
from shared.contracts.topics import ALERTS
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import eventually

pytestmark = pytest.mark.apache
KINDS = {"topic": 2, "group": 3}
LITERAL = ALLOW = 3
OPERATIONS = {"Read": 3, "Write": 4, "Describe": 8}
PASSWORD = "a-password-of-this-test"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[KafkaAddress, KafkaAddress]]:
    """A Kafka as Strimzi sets it up: (where its administrator connects, where users do, without a user)."""
    folder = tmp_path_factory.mktemp("guarded")
    try:
        java, jars = kafka._java(), kafka.jars()
    except kafka.Unavailable as why:
        pytest.skip(f"Apache Kafka cannot run here: {why}")
    lock = processes.claim(folder)
    inside, controller, outside = processes.keep_ports(folder, 3)
    authority = _certificate(folder / "server.pem")
    (folder / "ca.crt").write_bytes(authority)
    added = {
        "listeners": f"PLAINTEXT://127.0.0.1:{inside},CONTROLLER://127.0.0.1:{controller},USERS://127.0.0.1:{outside}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{inside},USERS://127.0.0.1:{outside}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_SSL",
        "listener.name.users.ssl.keystore.type": "PEM",
        "listener.name.users.ssl.keystore.location": str(folder / "server.pem"),
        "listener.name.users.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.users.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # who comes by the plain listener
    }
    plain = kafka._properties(folder / "data", inside, controller)
    (folder / "server.properties").write_text(plain + "".join(f"{name}={value}\n" for name, value in added.items()))
    (folder / "log4j2.properties").write_text(kafka._LOGGING)
    run = [*kafka._jvm(java, folder), "-cp", f"{jars}/*"]
    _format(run, folder)
    server = processes.start(
        "Apache Kafka", [*run, "kafka.Kafka", str(folder / "server.properties")], folder=folder, lock=lock
    )
    server.wait_until(partial(kafka._answers, inside), 60)
    yield KafkaAddress(f"127.0.0.1:{inside}"), KafkaAddress(f"127.0.0.1:{outside}", ca=folder / "ca.crt")
    server.stop()


def _format(run: list[str], folder: Path) -> None:
    users = [f"SCRAM-SHA-512=[name={one.name},password={PASSWORD}]" for one in SERVICES]
    command = [*run, "kafka.tools.StorageTool", "format", "-t", "openbellOpenbellOpenbl", "-c"]
    command += [str(folder / "server.properties"), *(part for user in users for part in ("--add-scram", user))]
    subprocess.run(command, check=True, capture_output=True)


def _certificate(keystore: Path) -> bytes:
    """Write a key and a certificate for 127.0.0.1; return the certificate, which is its own authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kafka")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keystore.write_bytes(private + certificate)
    return certificate


@pytest.fixture(scope="module")
async def users(guarded: tuple[KafkaAddress, KafkaAddress]) -> KafkaAddress:
    """Where users connect, once topics are there and each user may do what its manifest says."""
    administrator, outside = guarded
    await ensure_topics(administrator, topics())
    admin: Any = AIOKafkaAdminClient(**administrator.connection())
    await admin.start()
    for user, acl in [(one.name, acl) for one in SERVICES for acl in acls(one)]:
        resource = acl["resource"]
        assert resource["patternType"] == "literal"
        for operation in acl["operations"]:
            on = (KINDS[resource["type"]], resource["name"], LITERAL)
            request = CreateAclsRequest(*on, f"User:{user}", "*", OPERATIONS[operation], ALLOW)
            answer = await admin._send_to_controller(request)
            assert [one[0] for one in answer.creation_responses] == [0]
    await admin.close()
    return outside


def _settings(users: KafkaAddress, user: str, database_url: str) -> SharedSettings:
    return SharedSettings.model_validate(
        {
            "database_url": database_url,
            "kafka_bootstrap": users.bootstrap,
            "kafka_ca": users.ca,
            "kafka_user": user,
            "kafka_password": PASSWORD,
        }
    )


@pytest.fixture
async def running(users: KafkaAddress, database_url: str) -> AsyncGenerator[list[Service]]:
    async with AsyncExitStack() as held:
        started: list[Service] = []
        for one in SERVICES:
            service: Service = import_module(f"services.{one.name}.main").build(
                Environment(_settings(users, one.name, database_url))
            )
            await held.enter_async_context(service.running())
            started.append(service)
        yield started


async def test_every_service_becomes_ready_as_its_own_user(running: list[Service]):
    for service in running:

        async def ready(service: Service = service) -> bool:
            return all(ok for ok, _ in (await service.readiness()).values())

        await eventually(ready, 60)


@pytest.mark.parametrize("one", [one for one in SERVICES if one.name != "alerts"], ids=lambda one: one.name)
async def test_no_service_may_write_to_a_topic_of_another(users: KafkaAddress, one: Deployed, database_url: str):
    writer = KafkaAddress.of(_settings(users, one.name, database_url)).writer(one.name)
    await writer.start()
    with pytest.raises(TopicAuthorizationFailedError):
        await (await writer.send(ALERTS.name, b"{}", b"somebody"))
    await writer.stop()


async def test_a_stranger_is_not_let_in(users: KafkaAddress, database_url: str, caplog: pytest.LogCaptureFixture):
    writer = KafkaAddress.of(_settings(users, "stranger", database_url)).writer("stranger")
    with pytest.raises(KafkaError, match="Unable to bootstrap"):
        await writer.start()
    await writer.stop()
    assert "SaslAuthenticationFailed" in caplog.text
