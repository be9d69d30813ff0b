"""The detector's HTTP side, and the whole service as `build` wires it."""

from collections.abc import AsyncGenerator
from random import Random
from typing import Any, cast
from uuid import UUID

import httpx
import pytest

import services.detector as card
from services.detector.main import build
from services.detector.service import Detector
from services.detector.store import DetectorStore
from shared.clock import new_id
from shared.identity import HEADER, Identity, Signer
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import ManualClock
from tests.detector.chains import AS_OF, SESSION, collected, header, row


@pytest.fixture
async def service(database_url: str) -> AsyncGenerator[Service]:
    settings = SharedSettings(database_url=database_url)
    built = build(Environment(settings, ManualClock(AS_OF), Random(1), "test"))
    yield built
    await built.db.close()


@pytest.fixture
async def client(service: Service) -> AsyncGenerator[httpx.AsyncClient]:
    signer = Signer(service.settings.identity_secret.get_secret_value(), service.clock)
    token = signer.sign(Identity(UUID(int=1), "user"), audience="detector", request_id="r")
    transport = httpx.ASGITransport(cast("Any", service.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://detector", headers={HEADER: token}) as made:
        yield made


@pytest.fixture
async def scanned(service: Service) -> None:
    detector = Detector(DetectorStore(), clock=service.clock, new_id=new_id)
    events = [
        collected(header(minute=minute, simulated=True), [row(volume=2_000.0 + 500 * minute)]) for minute in (0, 1)
    ]
    await service.door.publish(lambda tx: detector.detect(events, tx))
    await service.door.publish(detector.refresh_board)


async def test_the_leaderboard_is_the_newest_one(client, scanned):
    answer = await client.get("/leaderboard")
    assert answer.status_code == 200
    body = answer.json()
    assert (body["session"], body["as_of"], body["symbols_scanned"]) == ("2026-07-24", "2026-07-24T15:32:00Z", 1)
    (place,) = body["entries"]
    assert (place["rank"], place["contract"], place["symbol"]) == (1, row()["contract"], "AAPL")
    assert place["simulated"] is True
    assert place["premium_usd"] == "275000.0"


async def test_the_leaderboard_of_a_time_is_the_one_of_its_history(client, scanned):
    history = (await client.get("/leaderboard/history", params={"session": str(SESSION)})).json()
    assert [each["as_of"] for each in history] == ["2026-07-24T15:32:00Z", "2026-07-24T15:31:00Z"]
    earlier = (await client.get("/leaderboard", params={"at": history[1]["as_of"]})).json()
    assert earlier["as_of"] == history[1]["as_of"]
    assert earlier["entries"][0]["score"] == history[1]["best_score"]
    assert (await client.get("/leaderboard", params={"at": "2026-07-24T15:30:59Z"})).status_code == 404


async def test_the_activity_of_a_symbol_shows_the_parts_of_each_score(client, scanned):
    body = (await client.get("/activity/aapl")).json()
    assert (body["symbol"], body["session"]) == ("AAPL", "2026-07-24")
    (contract,) = body["contracts"]
    assert contract["simulated"] is True
    assert (contract["volume"], contract["volume_change"], contract["strike"]) == (2_500, 500, "110.0")
    assert contract["score"] == pytest.approx(sum(contract["parts"].values()))
    assert contract["best_score"] >= contract["score"]


async def test_before_the_first_scan_the_board_is_empty_and_activity_too(client):
    assert (await client.get("/leaderboard")).json() == {
        "session": None,
        "as_of": None,
        "symbols_scanned": 0,
        "entries": [],
    }
    assert (await client.get("/leaderboard/history")).json() == []
    assert (await client.get("/activity/AAPL")).json() == {"symbol": "AAPL", "session": None, "contracts": []}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/leaderboard?session=2026-13-01", 422),
        ("/leaderboard?at=yesterday", 422),
        ("/leaderboard?at=2026-07-24T15:32:00", 422),
        ("/leaderboard/history?limit=0", 422),
        ("/activity/AAPL?limit=100000", 422),
        ("/activity/A%00", 422),
        ("/activity/%F0%9F%A6%86", 200),
    ],
)
async def test_odd_questions_get_clear_answers(client, path, status):
    answer = await client.get(path)
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["error"]["message"]


async def test_strangers_are_not_answered(service):
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(cast("Any", service.app)), base_url="http://detector"
    ) as stranger:
        assert (await stranger.get("/leaderboard")).status_code == 401


async def test_the_service_card_says_what_the_consumers_read(service):
    read = {route.event for consumer in service.consumers for route in consumer.routes.values()}
    assert read == set(card.READS)


async def test_the_openapi_document_names_the_three_routes(client):
    document = (await client.get("/ops/schema/openapi.json")).json()
    assert {"/leaderboard", "/leaderboard/history", "/activity/{symbol}"} <= document["paths"].keys()
