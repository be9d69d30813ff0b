import uuid
from collections.abc import AsyncGenerator

import asyncpg
import pytest

from shared.messaging.kafka import KafkaAddress
from tests.messaging.harness import Probe, make_schema, probing


@pytest.fixture(autouse=True)
def only_on_apache(request: pytest.FixtureRequest) -> None:
    """Skip what the embedded broker cannot do."""
    if request.node.get_closest_marker("apache") and request.getfixturevalue("kafka").kind == "embedded":
        pytest.skip("needs Apache Kafka")


@pytest.fixture
async def probe_url(postgres: str) -> AsyncGenerator[str]:
    """A fresh database with the probe's schema alone."""
    name = f"probe_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres)
    await admin.execute(f"create database {name}")
    url = f"{postgres.rpartition('/')[0]}/{name}"
    await make_schema(url)
    yield url
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


@pytest.fixture
async def probe(probe_url: str, address: KafkaAddress) -> AsyncGenerator[Probe]:
    async with probing(probe_url, address) as opened:
        yield opened
