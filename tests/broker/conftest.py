from collections.abc import AsyncGenerator, Callable

import pytest

from shared.db import Database
from tests.broker.brokerage import Brokerage, opened
from tests.broker.oauth_rig import Broker, connecting
from tests.broker.paper_rig import PaperRigs


@pytest.fixture
async def brokerage(database_url: str) -> AsyncGenerator[Brokerage]:
    """The service over a venue in memory."""
    async with opened(database_url) as found:
        yield found


@pytest.fixture(autouse=True)
def database_of_the_paper_venue(request: pytest.FixtureRequest) -> None:
    """Cases that run at the paper venue get a Postgres."""
    called = getattr(request.node, "callspec", None)
    rigs = called.params.get("rigs") if called is not None else None
    if isinstance(rigs, PaperRigs):
        rigs.url = request.getfixturevalue("database_url")


@pytest.fixture
async def broker(database_url: str, open_database: Callable[[str], Database]) -> AsyncGenerator[Broker]:
    """The routes of OAuth over a venue that has it."""
    async with connecting(database_url, open_database) as found:
        yield found
