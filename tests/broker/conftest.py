"""Cases that run at the paper venue get a Postgres."""

import pytest

from tests.broker.paper_rig import PaperRigs


@pytest.fixture(autouse=True)
def database_of_the_paper_venue(request: pytest.FixtureRequest) -> None:
    called = getattr(request.node, "callspec", None)
    rigs = called.params.get("rigs") if called is not None else None
    if isinstance(rigs, PaperRigs):
        rigs.url = request.getfixturevalue("database_url")
