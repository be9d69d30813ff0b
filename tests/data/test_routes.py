import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import httpx
import pytest

from services.data.adapters.cboe import parse_answer
from services.data.main import build
from services.data.service import DataService
from services.data.store import SnapshotStore
from shared.clock import new_id
from shared.errors import Transient
from shared.identity import HEADER, Identity, Signer
from shared.service import Environment, Service
from shared.sessions import Sessions
from shared.settings import SharedSettings
from tests.data.fake_cboe import answer, row

NOW = datetime(2026, 7, 24, 18, 2, tzinfo=UTC)
CALL = "AAPL260821C00330000"


@pytest.fixture
async def served(database_url: str, sessions: Sessions) -> AsyncIterator[Service]:
    """The data service, wired but not started, with one chain."""
    service = build(Environment(SharedSettings(database_url=database_url), clock=lambda: NOW))
    body = json.dumps(answer(rows=[row(CALL), row("AAPL260821P00330000", iv=0, bid=None)])).encode()
    snapshot = parse_answer(body, source="cboe", sessions=sessions)
    data = DataService(SnapshotStore(), service.clock)
    async with service.db.transaction() as tx:
        await data.record(snapshot, tx)
    yield service
    await service.db.close()


def client_of(served: Service) -> httpx.AsyncClient:
    """Return a client in this loop, where the database's connections live."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://data")  # pyright: ignore[reportArgumentType]


async def get(served: Service, path: str) -> tuple[int, dict]:
    signer = Signer(served.settings.identity_secret.get_secret_value(), served.clock)
    token = signer.sign(Identity(new_id(), "user"), audience="data", request_id="r1")
    async with client_of(served) as client:
        response = await client.get(path, headers={HEADER: token})
    return response.status_code, response.json()


async def test_a_chain_says_where_it_is_from_and_how_old_it_is(served: Service) -> None:
    status, told = await get(served, "/realtime-options/aapl")
    assert status == 200
    contracts = told.pop("contracts")
    assert told == {
        "symbol": "AAPL",
        "source": "cboe",
        "simulated": False,
        "session": "2026-07-24",
        "as_of": "2026-07-24T18:00:00Z",
        "delay_s": 900.0,
        "age_s": 120.0,
        "failures": 0,
        "underlying": {"close": 333.02, "bid": 333.0, "ask": 333.1},
        "count": 2,
    }
    assert contracts[0] == {
        "contract": CALL,
        "expiration": "2026-08-21",
        "right": "C",
        "strike": 330.0,
        "bid": 1.0,
        "ask": 1.1,
        "last": 1.05,
        "volume": 10,
        "open_interest": 100,
        "iv": 0.3,
        "delta": 0.5,
        "gamma": 0.01,
        "theta": -0.02,
        "vega": 0.1,
    }
    assert (contracts[1]["iv"], contracts[1]["bid"]) == (None, None)


async def test_a_contract_filters(served: Service) -> None:
    status, told = await get(served, f"/realtime-options/AAPL?contract={CALL}")
    assert status == 200
    assert [one["contract"] for one in told["contracts"]] == [CALL]
    assert told["count"] == 1


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/realtime-options/MSFT", 404, "NOT_FOUND"),
        ("/realtime-options/AAPL?contract=AAPL260821C00335000", 404, "NOT_FOUND"),
        ("/realtime-options/AAPL?contract=nonsense", 422, "VALIDATION_ERROR"),
        ("/realtime-options/AA%24PL", 422, "VALIDATION_ERROR"),
        ("/realtime-options/" + "A" * 300, 422, "VALIDATION_ERROR"),
    ],
)
async def test_what_cannot_be_answered_says_why(served: Service, path: str, status: int, code: str) -> None:
    got, told = await get(served, path)
    assert (got, told["error"]["code"]) == (status, code)


async def test_every_failed_fetch_since_is_told(served: Service) -> None:
    data = DataService(SnapshotStore(), served.clock)
    async with served.db.transaction() as tx:
        await data.record_failure("AAPL", "cboe", Transient("down"), tx)
    _, told = await get(served, "/realtime-options/AAPL")
    assert told["failures"] == 1


async def test_strangers_are_not_served(served: Service) -> None:
    async with client_of(served) as client:
        assert (await client.get("/realtime-options/AAPL")).status_code == 401
