from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from services.data.adapters.simulator import load_closes
from services.data.domain.columns import Floats
from shared.db import Database
from tests import conftest as common
from tests.data.fake_cboe import FakeCboe


@pytest.fixture(scope="session")
def closes() -> dict[str, Floats]:
    return load_closes()


@pytest_asyncio.fixture
async def cboe() -> AsyncIterator[FakeCboe]:
    fake = FakeCboe()
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def recorded() -> Path:
    """The folder of recorded Cboe answers, which may not be redistributed with the project."""
    return common.recorded("data", "cboe")


@pytest.fixture
def data_db(open_database: Callable[[str], Database]) -> Database:
    return open_database("data")
