from collections.abc import AsyncGenerator

import pytest

from tests.broker.brokerage import Brokerage, opened
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
