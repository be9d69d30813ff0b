"""A real Postgres and a real Kafka for the tests; they need not know where these run.

Containers where a Docker engine answers and has (or can pull) the images, else child processes of
deploy/local in a folder of their own. A forced Kafka (OPENBELL_KAFKA, OPENBELL_KAFKA_BOOTSTRAP) is obeyed, and images
that are named (TEST_POSTGRES_IMAGE, TEST_KAFKA_IMAGE; `make test-containers` does) are taken, or the tests fail.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Generator
from functools import cache
from pathlib import Path

from deploy.local import kafka, postgres

POSTGRES_IMAGE = os.environ.get("TEST_POSTGRES_IMAGE", "postgres:18")
KAFKA_IMAGE = os.environ.get("TEST_KAFKA_IMAGE", f"apache/kafka:{kafka.KAFKA_VERSION}")
NAMED = {os.environ.get("TEST_POSTGRES_IMAGE"), os.environ.get("TEST_KAFKA_IMAGE")}


@contextlib.contextmanager
def postgres_server() -> Generator[str]:
    """Yields the DSN (postgresql://…) of an empty server; data is not safe from power cuts."""
    if _docker_has(POSTGRES_IMAGE):
        with _postgres_container() as dsn:
            yield dsn
        return
    with _folder() as folder:
        try:
            with postgres.start(folder / "postgres", fsync=False) as running:
                yield running.dsn
        finally:
            postgres.remove(folder / "postgres")


@contextlib.contextmanager
def kafka_server() -> Generator[kafka.RunningKafka]:
    """Yields a Kafka without topics (unless it is a cluster of yours)."""
    chosen = os.environ.get("OPENBELL_KAFKA") or os.environ.get("OPENBELL_KAFKA_BOOTSTRAP")
    if not chosen and _docker_has(KAFKA_IMAGE):
        with _kafka_container() as bootstrap:
            yield kafka.RunningKafka("apache", bootstrap, "Apache Kafka in a container")
        return
    with _folder() as folder, kafka.resolve(folder / "kafka") as running:
        yield running


@contextlib.contextmanager
def _folder() -> Generator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="openbell-test-"))
    folder.chmod(0o711)  # Postgres started by root runs as nobody and must pass through
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@cache
def _docker_has(image: str) -> bool:
    """Whether a Docker engine answers at once and has `image`, and what cleans up behind it, or can pull them."""
    if image not in NAMED and not os.environ.get("DOCKER_HOST"):  # docker leaks a socket when nobody listens: ask first
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex("/var/run/docker.sock"):
                return False
    import docker  # noqa: PLC0415 - slow to import, and often not needed
    from docker.errors import DockerException  # noqa: PLC0415
    from testcontainers.core.config import testcontainers_config  # noqa: PLC0415

    needed = [image] if testcontainers_config.ryuk_disabled else [image, testcontainers_config.ryuk_image]
    try:
        with contextlib.closing(docker.from_env(timeout=2)) as client:
            client.ping()
        with contextlib.closing(docker.from_env(timeout=300)) as client:
            for one in needed:
                if not client.images.list(name=one):
                    client.images.pull(one)
    except (DockerException, OSError):
        if image in NAMED:
            raise
        return False
    return True


@contextlib.contextmanager
def _postgres_container() -> Generator[str]:
    with warnings.catch_warnings():  # testcontainers warns about its own helpers
        warnings.simplefilter("ignore")
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415
        from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: PLC0415

    container = (
        DockerContainer(POSTGRES_IMAGE)
        .with_env("POSTGRES_HOST_AUTH_METHOD", "trust")
        .with_exposed_ports(5432)
        .with_command("-c max_connections=200 -c max_locks_per_transaction=256 -c fsync=off -c synchronous_commit=off")
        # The second time: the image starts once to initialise and once to stay.
        .waiting_for(LogMessageWaitStrategy("ready to accept connections", times=2))
    )
    with container:
        host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
        yield f"postgresql://postgres@{host}:{port}/postgres"


@contextlib.contextmanager
def _kafka_container() -> Generator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415
        from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: PLC0415

    # Kafka tells clients its address, so the outside port must be known before it starts.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port)
    host = container.get_docker_client().host()
    settings = {
        "KAFKA_PROCESS_ROLES": "broker,controller",
        "KAFKA_NODE_ID": "1",
        "KAFKA_CONTROLLER_QUORUM_VOTERS": "1@127.0.0.1:9093",
        "KAFKA_CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "KAFKA_LISTENERS": "PLAINTEXT://:9092,CONTROLLER://127.0.0.1:9093",
        "KAFKA_ADVERTISED_LISTENERS": f"PLAINTEXT://{host}:{port}",
        "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "KAFKA_AUTO_CREATE_TOPICS_ENABLE": "false",
        "KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
        "KAFKA_TRANSACTION_STATE_LOG_MIN_ISR": "1",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
        "KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS": "1000",
    }
    for name, value in settings.items():
        container = container.with_env(name, value)
    with container.waiting_for(LogMessageWaitStrategy("Kafka Server started")):
        yield f"{host}:{port}"
