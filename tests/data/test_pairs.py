"""Quotes of crypto pairs: Alpaca's answers from a server of ours, the simulator, and the poller that tells them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs

import pytest
import pytest_asyncio
from sqlalchemy import text

from services.data.adapters.alpaca_pairs import PATH, AlpacaPairs
from services.data.adapters.simulated_pairs import SimulatedPairs
from services.data.domain.pairs import parse_pair, simulated
from services.data.main import choose_pairs
from services.data.service import DataService
from services.data.settings import DataSettings
from services.data.store import SnapshotStore
from services.data.workers.pairs import LONGEST_S, LONGEST_TOLD_S, PairPoller
from shared.db import Database
from shared.errors import Invalid, Permanent, Transient
from shared.messaging.door import Door
from shared.messaging.outbox import Outbox
from tests.conftest import ManualClock
from tests.fakes.serving import serving

D = Decimal
NOW = datetime(2026, 7, 25, 3, 0, 4, tzinfo=UTC)  # a Saturday night
PAIRS = ("BTC/USD", "ETH/USD", "ETH/BTC")


class FakeAlpacaData:
    """Alpaca's market data: what it has, and how it fails. A pair of `refused` has the whole request refused."""

    def __init__(self) -> None:
        self.quotes: dict[str, Any] = {pair: quote() for pair in PAIRS}
        self.refused: set[str] = set()
        self.body: bytes | None = None
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = []
        self.asked: list[list[str]] = []
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == PATH
        wanted = parse_qs(scope["query_string"].decode())["symbols"][0].split(",")
        self.asked.append(wanted)
        status = 400 if self.refused & set(wanted) else self.status
        told = {pair: self.quotes[pair] for pair in wanted if pair in self.quotes}
        body = json.dumps({"quotes": told}).encode() if self.body is None else self.body
        await send({"type": "http.response.start", "status": status, "headers": self.headers})
        await send({"type": "http.response.body", "body": body})


def quote(**fields: Any) -> dict[str, Any]:
    """One quote as Alpaca writes it; times to the nanosecond."""
    return {"bp": 90012.5, "bs": 0.5, "ap": 90020.25, "as": 1.2, "t": "2026-07-25T03:00:03.123456789Z"} | fields


@pytest.fixture
def market() -> Generator[FakeAlpacaData]:
    fake = FakeAlpacaData()
    with serving(fake, "alpaca-data") as fake.url:
        yield fake


@pytest_asyncio.fixture
async def alpaca(market: FakeAlpacaData) -> AsyncIterator[AlpacaPairs]:
    source = AlpacaPairs(base_url=market.url, clock=lambda: NOW, every_s=5)
    yield source
    await source.aclose()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def data_db(open_database: Callable[[str], Database]) -> Database:
    return open_database("data")


@pytest.fixture
def pairs(data_db: Database, clock: ManualClock) -> Callable[..., PairPoller]:
    def make(*names: str) -> PairPoller:
        async def nobody() -> None:
            return None

        door = Door(data_db, Outbox("data", lambda: None))
        service = DataService(SnapshotStore(), clock)
        return PairPoller(open_source=nobody, service=service, door=door, clock=clock, pairs=names or PAIRS)

    return make


async def told(database: Database) -> list[dict[str, Any]]:
    async with database.read() as tx:
        rows = await tx.fetch(text("select topic, convert_from(value, 'utf8') as body from outbox order by id"))
    assert {row["topic"] for row in rows} <= {"data.pairs"}
    return [json.loads(row["body"]) for row in rows]


# Alpaca


async def test_all_pairs_are_asked_for_at_once_and_prices_are_exact(
    market: FakeAlpacaData, alpaca: AlpacaPairs
) -> None:
    market.quotes["SHIB/USD"] = quote(bp=0.00001234, ap=0.00001236)
    found = await alpaca.quotes((*PAIRS, "SHIB/USD", "NOBODY/USD"))
    assert market.asked == [[*PAIRS, "SHIB/USD", "NOBODY/USD"]]
    assert [one.symbol for one in found.quotes] == [*PAIRS, "SHIB/USD"]
    btc, *_, shib = found.quotes
    assert (btc.bid, btc.ask) == (D("90012.5"), D("90020.25"))
    assert btc.as_of == datetime(2026, 7, 25, 3, 0, 3, 123456, UTC)
    assert (shib.bid, shib.ask) == (D("0.00001234"), D("0.00001236"))
    assert not found.dropped


@pytest.mark.parametrize(
    ("faulty", "reason"),
    [
        (quote(bp=0), "bad_price"),
        (quote(ap=-1), "bad_price"),
        (quote(ap=1e13), "bad_price"),
        (quote(bp=90_030), "crossed"),
        (quote(t="2026-07-25T03:01:04Z"), "future"),
        (quote(t="yesterday"), "unreadable"),
        (quote(t="2026-07-25T03:00:03"), "unreadable"),
        (quote(bp="90012.5"), "unreadable"),
        (quote(bp=None), "unreadable"),
        (quote(bp=True), "unreadable"),
        ({}, "unreadable"),
        (None, "unreadable"),
    ],
    ids=lambda value: json.dumps(value) if not isinstance(value, str) else value,
)
async def test_a_faulty_quote_costs_itself(
    market: FakeAlpacaData, alpaca: AlpacaPairs, faulty: Any, reason: str
) -> None:
    market.quotes["ETH/USD"] = faulty
    found = await alpaca.quotes(PAIRS)
    assert [one.symbol for one in found.quotes] == ["BTC/USD", "ETH/BTC"]
    assert found.dropped == {reason: 1}


@pytest.mark.parametrize(
    ("status", "headers", "error", "wait_s"),
    [
        (429, {"retry-after": "7"}, Transient, 7),
        (429, {"retry-after": "soon"}, Transient, None),
        (503, {}, Transient, None),
        (400, {}, Invalid, None),
        (403, {}, Permanent, None),
        (302, {"location": "/elsewhere"}, Permanent, None),
    ],
)
async def test_what_alpaca_answers_means_what_a_caller_can_do(
    market: FakeAlpacaData,
    alpaca: AlpacaPairs,
    status: int,
    headers: Mapping[str, str],
    error: type[Exception],
    wait_s: float | None,
) -> None:
    market.status = status
    market.headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    with pytest.raises(error) as raised:
        await alpaca.quotes(PAIRS)
    assert type(raised.value) is error
    assert getattr(raised.value, "retry_after_s", None) == wait_s


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"quotes": []}', b"[" * 100_000, b'{"quote": {}}'])
async def test_an_answer_that_is_none_is_transient(market: FakeAlpacaData, alpaca: AlpacaPairs, body: bytes) -> None:
    market.body = body
    with pytest.raises(Transient):
        await alpaca.quotes(PAIRS)


async def test_nobody_there_is_transient() -> None:
    source = AlpacaPairs(base_url="http://127.0.0.1:9", clock=lambda: NOW, every_s=5)
    with pytest.raises(Transient, match="cannot be reached"):
        await source.quotes(PAIRS)
    await source.aclose()


# The simulator


async def test_simulated_pairs_agree_with_each_other_and_over_restarts() -> None:
    clock = ManualClock(NOW)
    one, other = (SimulatedPairs(clock=clock, seed=1, every_s=5) for _ in range(2))
    first = (await one.quotes(PAIRS)).quotes
    assert first == (await other.quotes(PAIRS)).quotes
    assert first != (await SimulatedPairs(clock=clock, seed=2, every_s=5).quotes(PAIRS)).quotes
    btc, eth, cross = (float((quote.bid + quote.ask) / 2) for quote in first)
    assert cross == pytest.approx(eth / btc, rel=1e-4)
    assert all(quote.as_of == NOW - timedelta(seconds=4) for quote in first)
    clock.advance(0.5)
    assert first == (await one.quotes(PAIRS)).quotes
    clock.advance(0.5)
    assert first != (await one.quotes(PAIRS)).quotes


@pytest.mark.parametrize("pair", [*DataSettings.model_fields["pairs"].default, "NEW/EUR", "BTC/BTC"])
def test_a_simulated_market_moves_and_stays_sane(pair: str) -> None:
    quotes = [simulated(pair, NOW + timedelta(hours=hour), 1) for hour in range(0, 24 * 365, 7)]
    assert all(0 < quote.bid < quote.ask for quote in quotes)
    lowest, highest = min(quote.bid for quote in quotes), max(quote.bid for quote in quotes)
    assert highest < lowest * 3
    still = {"USDC/USD", "USDT/USD", "BTC/BTC"}
    assert (lowest < highest) != (pair in still)


@pytest.mark.parametrize(
    "name", ["", "BTCUSD", "BTC/", "/USD", "BTC/USD/X", "BTC/U", "\uff22TC/USD", "../etc", "BTC USD"]
)
def test_what_is_no_pair_is_refused(name: str) -> None:
    with pytest.raises(Invalid):
        parse_pair(name)


def test_the_pairs_of_the_settings_are_pairs() -> None:
    names = DataSettings.model_fields["pairs"].default
    assert len(names) == len(set(names))
    assert tuple(parse_pair(name) for name in names) == names
    assert parse_pair("btc/usd") == "BTC/USD"


@pytest.mark.parametrize(
    ("chains", "wanted", "found"),
    [
        ("cboe", "auto", AlpacaPairs),
        ("simulator", "auto", SimulatedPairs),
        ("replay", "auto", type(None)),
        ("simulator", "alpaca", AlpacaPairs),
        ("cboe", "simulator", SimulatedPairs),
    ],
)
async def test_pairs_are_simulated_where_chains_are(chains: Any, wanted: Any, found: type) -> None:
    settings = DataSettings(_env_file=None, source=chains, pairs_source=wanted)  # pyright: ignore[reportCallIssue]
    source = choose_pairs(settings, lambda: NOW)
    assert type(source) is found
    if source is not None:
        await source.aclose()


# The poller


async def test_new_quotes_are_told_once_with_their_source(
    market: FakeAlpacaData, alpaca: AlpacaPairs, pairs: Callable[..., PairPoller], data_db: Database
) -> None:
    poller = pairs()
    assert await poller.round(alpaca) == pytest.approx(5)
    assert await poller.round(alpaca) == pytest.approx(5)
    assert [one["symbol"] for one in await told(data_db)] == list(PAIRS)
    market.quotes["ETH/USD"] = quote(bp=1, ap=2, t="2026-07-25T03:00:04Z")
    await poller.round(alpaca)
    last = (await told(data_db))[3:]
    assert [(one["symbol"], one["bid"], one["ask"], one["source"], one["simulated"]) for one in last] == [
        ("ETH/USD", "1", "2", "alpaca", False)
    ]
    assert poller.health() == (True, "alpaca: 3 of 3 pairs")


async def test_a_pair_that_is_refused_costs_itself_for_an_hour(
    market: FakeAlpacaData,
    alpaca: AlpacaPairs,
    pairs: Callable[..., PairPoller],
    data_db: Database,
    clock: ManualClock,
) -> None:
    poller = pairs(*PAIRS, "OLD/USD")
    market.refused = {"OLD/USD"}
    await poller.round(alpaca)
    assert [one["symbol"] for one in await told(data_db)] == list(PAIRS)
    market.asked.clear()
    await poller.round(alpaca)
    assert market.asked == [list(PAIRS)]
    clock.advance(3601)
    market.refused, market.quotes["OLD/USD"] = set(), quote()
    await poller.round(alpaca)
    assert (await told(data_db))[-1]["symbol"] == "OLD/USD"


async def test_failures_are_waited_out_longer_and_longer(
    market: FakeAlpacaData, alpaca: AlpacaPairs, pairs: Callable[..., PairPoller]
) -> None:
    poller = pairs()
    market.status = 503
    assert [await poller.round(alpaca) for _ in range(5)] == [10, 20, 40, LONGEST_S, LONGEST_S]
    assert poller.health() == (True, "alpaca: Alpaca asks for patience")
    market.headers = [(b"retry-after", b"300")]
    assert await poller.round(alpaca) == 300
    market.headers = [(b"retry-after", b"86400")]
    assert await poller.round(alpaca) == LONGEST_TOLD_S
    market.status = 200
    assert await poller.round(alpaca) == pytest.approx(5)
    market.status, market.headers = 503, []
    assert await poller.round(alpaca) == 10


async def test_simulated_quotes_say_so(pairs: Callable[..., PairPoller], data_db: Database, clock: ManualClock) -> None:
    await pairs().round(SimulatedPairs(clock=clock, seed=1, every_s=5))
    assert [(one["source"], one["simulated"]) for one in await told(data_db)] == [("simulator", True)] * 3


async def test_it_stalls_visibly_and_rests_where_there_is_no_source(
    pairs: Callable[..., PairPoller], clock: ManualClock
) -> None:
    poller = pairs()
    clock.advance(301)
    assert poller.health() == (False, "starting, stalled")
    task = asyncio.create_task(poller.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    clock.advance(3600)
    assert poller.health() == (True, "no source")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
