import asyncio
import json
import math
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.data.adapters.cboe import CboeSource, parse_answer
from services.data.domain.chain import Snapshot, Validators
from services.data.ports import Unchanged, UnusableAnswer
from shared.errors import Invalid, NotFound, OpenbellError, Permanent, Transient
from shared.sessions import Sessions
from tests.data.fake_cboe import FakeCboe, Reply, answer, row

NOW = datetime(2026, 7, 24, 18, 0, 30, tzinfo=UTC)
NOTHING = Validators()


async def no_wait(_seconds: float) -> None:
    await asyncio.sleep(0)


def source_at(url: str, sessions: Sessions, **settings: Any) -> CboeSource:
    defaults: dict[str, Any] = {"clock": lambda: NOW, "sleep": no_wait, "timeout_s": 10.0}
    return CboeSource(base_url=url, sessions=sessions, **defaults | settings)


@pytest_asyncio.fixture
async def source(cboe: FakeCboe, sessions: Sessions) -> AsyncIterator[CboeSource]:
    source = source_at(cboe.url, sessions)
    yield source
    await source.aclose()


async def test_a_chain_is_read_with_its_header(cboe: FakeCboe, source: CboeSource) -> None:
    cboe.says("AAPL", answer())
    found = await source.fetch("AAPL", NOTHING)
    assert isinstance(found, Snapshot)
    header = found.header
    assert (header.symbol, header.source, header.simulated, header.delay_s) == ("AAPL", "cboe", False, 900.0)
    assert header.as_of == datetime(2026, 7, 24, 18, 0, tzinfo=UTC)
    assert header.session == date(2026, 7, 24)
    assert (header.close, header.bid, header.ask) == (333.02, 333.0, 333.1)  # never current_price
    assert found.contracts["contract"].to_pylist() == ["AAPL260821C00330000", "AAPL260821P00330000"]
    assert cboe.asked[0].path == "/api/global/delayed_quotes/options/AAPL.json"


async def test_the_second_request_is_conditional(cboe: FakeCboe, source: CboeSource) -> None:
    cboe.says("AAPL", Reply(json.dumps(answer()).encode(), headers={"last-modified": "Fri, 24 Jul 2026 18:00:00 GMT"}))
    found = await source.fetch("AAPL", NOTHING)
    assert isinstance(found, Snapshot)
    assert isinstance(await source.fetch("AAPL", found.validators), Unchanged)
    assert cboe.asked[1].headers["if-none-match"] == found.validators.etag
    assert cboe.asked[1].headers["if-modified-since"] == "Fri, 24 Jul 2026 18:00:00 GMT"


async def test_an_index_keeps_its_contracts_of_other_roots(cboe: FakeCboe, source: CboeSource) -> None:
    rows = [row("SPX260821C05800000"), row("SPXW260821C05800000"), row("SPX1260821C05800000")]
    cboe.says("_SPX", answer("_SPX", rows=rows))
    found = await source.fetch("_SPX", NOTHING)
    assert isinstance(found, Snapshot)
    assert found.contracts.num_rows == 3
    assert not found.dropped


@pytest.mark.parametrize("symbol", ["../../etc", "AAPL/../X", "AAPL?x=1", "AAPL\r\nX: 1", "", "a b"])
async def test_a_symbol_outside_the_grammar_never_reaches_a_url(
    cboe: FakeCboe, source: CboeSource, symbol: str
) -> None:
    with pytest.raises(Invalid):
        await source.fetch(symbol, NOTHING)
    assert not cboe.asked


@pytest.mark.parametrize("status", [403, 404])
async def test_an_unknown_symbol_is_not_found(cboe: FakeCboe, source: CboeSource, status: int) -> None:
    cboe.says("ZZZZ", Reply(b"<Error/>", status))
    with pytest.raises(NotFound):
        await source.fetch("ZZZZ", NOTHING)


@pytest.mark.parametrize(
    ("reply", "error", "retry_after_s"),
    [
        (Reply(b"", 429, {"retry-after": "7"}), Transient, 7.0),
        (Reply(b"", 429), Transient, None),
        (Reply(b"", 503, {"retry-after": "Fri, 24 Jul 2026 18:00:00 GMT"}), Transient, None),
        (Reply(b"", 500), Transient, None),
        (Reply(b"", 408), Transient, None),
        (Reply(b"", 400), Permanent, None),
        (Reply(b"", 301, {"location": "http://127.0.0.1:1/"}), Permanent, None),
    ],
)
async def test_a_status_becomes_our_error(
    cboe: FakeCboe, source: CboeSource, reply: Reply, error: type[OpenbellError], retry_after_s: float | None
) -> None:
    cboe.says("AAPL", reply)
    with pytest.raises(error) as caught:
        await source.fetch("AAPL", NOTHING)
    assert not isinstance(caught.value, NotFound)
    assert getattr(caught.value, "retry_after_s", None) == retry_after_s


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"<html><body>Sorry</body></html>",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"null",
        b"[]",
        b"{}",
        b'{"data": []}',
        json.dumps({"timestamp": "2026-07-24 18:00:00", "symbol": "AAPL", "data": {}}).encode(),
        json.dumps(answer(rows={})).encode(),
        json.dumps(answer(rows=[])).encode(),
        json.dumps(answer(rows=[row("nonsense")])).encode(),
        json.dumps(answer("MSFT")).encode(),
        json.dumps(answer() | {"symbol": None}).encode(),
        *(
            json.dumps(answer(timestamp=value)).encode()
            for value in (None, 17, "", "yesterday", "2026-07-24", "2026-13-24 18:00:00", "1999-01-04 15:00:00")
        ),
        json.dumps(answer(timestamp="2026-07-24 19:00:00")).encode(),  # an hour ahead of our clock
    ],
)
async def test_an_answer_that_is_no_chain_is_unusable(cboe: FakeCboe, source: CboeSource, body: bytes) -> None:
    cboe.says("AAPL", body)
    with pytest.raises(UnusableAnswer):
        await source.fetch("AAPL", NOTHING)


async def test_a_literal_nan_costs_its_row_only(cboe: FakeCboe, source: CboeSource) -> None:
    rows = [row("AAPL260821C00330000", volume=math.nan), row("AAPL260821P00330000")]
    cboe.says("AAPL", json.dumps(answer(rows=rows)).encode())
    found = await source.fetch("AAPL", NOTHING)
    assert isinstance(found, Snapshot)
    assert found.dropped == {"bad_volume": 1}
    assert found.contracts.num_rows == 1


async def test_an_answer_that_never_comes_is_transient(cboe: FakeCboe, sessions: Sessions) -> None:
    cboe.says("AAPL", Reply(None))
    source = source_at(cboe.url, sessions, timeout_s=0.05)
    with pytest.raises(Transient):
        await source.fetch("AAPL", NOTHING)
    await source.aclose()


async def test_nobody_listening_is_transient_and_unreachable(cboe: FakeCboe, sessions: Sessions) -> None:
    source = source_at(cboe.url, sessions)
    assert await source.reachable(5.0)
    await cboe.stop()
    assert not await source.reachable(5.0)
    with pytest.raises(Transient):
        await source.fetch("AAPL", NOTHING)
    await source.aclose()


async def test_an_answer_over_the_limit_is_not_read_to_its_end(cboe: FakeCboe, sessions: Sessions) -> None:
    cboe.says("AAPL", answer())
    source = source_at(cboe.url, sessions, max_bytes=100)
    with pytest.raises(UnusableAnswer):
        await source.fetch("AAPL", NOTHING)
    await source.aclose()


async def test_a_body_that_does_not_decompress_is_unusable(cboe: FakeCboe, source: CboeSource) -> None:
    cboe.says("AAPL", Reply(b"this is not gzip", headers={"content-encoding": "gzip"}))
    with pytest.raises(UnusableAnswer):
        await source.fetch("AAPL", NOTHING)


async def test_requests_wait_for_the_rate(cboe: FakeCboe, sessions: Sessions) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    cboe.says("AAPL", answer())
    source = source_at(cboe.url, sessions, rate_per_s=2.0, sleep=sleep)
    for _ in range(4):
        await source.fetch("AAPL", NOTHING)
    assert waits == [0.0, 0.0, 0.5, 1.0]
    await source.aclose()


def test_the_recorded_chain_is_read_whole(recorded: Path, sessions: Sessions) -> None:
    body = (recorded / "aapl_chain_2026-07-24.json").read_bytes()
    found = parse_answer(body, source="replay", sessions=sessions, symbol="AAPL")
    assert found.contracts.num_rows == 3576
    assert not found.dropped
    assert found.contracts["iv"].null_count == 354  # SOURCE.txt: that many rows have iv = 0
    assert len(set(found.contracts["expiration"].to_pylist())) == 24
    assert found.header.close == 333.02  # current_price says 333.8, after hours
    assert found.header.session == date(2026, 7, 24)


def test_the_recorded_time_is_utc_and_after_the_last_trade(recorded: Path, sessions: Sessions) -> None:
    body = (recorded / "aapl_chain_2026-07-24.json").read_bytes()
    header = parse_answer(body, source="replay", sessions=sessions).header
    last_trade = datetime(2026, 7, 24, 15, 59, 59, tzinfo=UTC) + timedelta(hours=4)  # New York, summer time
    assert header.as_of == datetime(2026, 7, 25, 3, 44, 38, tzinfo=UTC)
    assert header.as_of > last_trade
