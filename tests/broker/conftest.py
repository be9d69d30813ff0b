from collections.abc import AsyncGenerator

import pytest

from tests.broker.brokerage import Brokerage, opened


@pytest.fixture
async def brokerage(database_url: str) -> AsyncGenerator[Brokerage]:
    """The service over a venue in memory."""
    async with opened(database_url) as found:
        yield found
