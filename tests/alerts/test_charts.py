"""Charts: what is kept for them, what they show, and the child process that draws them."""

import asyncio
import os
import signal
import struct
import sys
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.adapters.charts.artist import Artist
from services.alerts.domain.charts import Bar, Chart, alt_of, chart_of, day_of, thinned
from services.alerts.domain.matching import sightings
from services.alerts.service.pictures import Pictures, price_of
from services.alerts.store.quotes import QuoteStore
from services.alerts.workers import Delivery
from shared.contracts.quotes import QuoteTaken
from shared.work import Worker
from tests.alerts.conftest import NOW, SESSION, Bench, activity, contract
from tests.alerts.test_routes import Client, client
from tests.conftest import eventually

__all__ = ["client"]

OPEN = int(datetime(2025, 6, 2, 13, 30, tzinfo=UTC).timestamp())


def chart(symbol: str = "AAPL", **fields: Any) -> Chart:
    usual: dict[str, Any] = {
        "session": SESSION,
        "points": tuple((OPEN + 60 * minute, 195.0 + minute % 17 / 10) for minute in range(120)),
        "marked": OPEN + 3_600,
        "bars": (Bar("20 Jun 200 call", 5_000, 400), Bar("18 Jul 205 call", 1_200, 900)),
        "simulated": False,
    }
    return Chart(symbol=symbol, **(usual | fields))


def size_of(png: bytes | None) -> tuple[int, int]:
    assert png is not None
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


@pytest.fixture(scope="module")
async def artist() -> AsyncIterator[Artist]:
    """One for the pictures below: starting it takes seconds, and a busy machine must not make it late."""
    one = Artist(timeout_s=120.0, burst=1_000)
    yield one
    await one.close()


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"points": ()},
        {"bars": ()},
        {"points": ((OPEN, 10.0),)},
        {"points": tuple((OPEN + minute, 100.0) for minute in range(400))},
        {"marked": OPEN - 86_400},
        {"bars": tuple(Bar(f"{n} Jun {n} put", 10**9 + n, 0) for n in range(5))},
        {"symbol": "$X<&>_^"},
        {"simulated": True},
    ],
)
async def test_whatever_is_known_of_an_alert_becomes_a_picture(artist: Artist, odd: dict[str, Any]) -> None:
    png = await artist.draw(chart(**odd))
    width, height = size_of(png)
    assert width == 720
    assert 100 <= height <= 700
    assert png is not None
    assert len(png) < 100_000


async def test_those_who_ask_for_the_same_share_one_picture(artist: Artist) -> None:
    drawn = await asyncio.gather(*(artist.draw(chart("SAME")) for _ in range(20)))
    assert all(one is drawn[0] for one in drawn)
    assert await artist.draw(chart("SAME")) is drawn[0]
    assert await artist.draw(chart("OTHER")) != drawn[0]


async def test_a_child_that_was_killed_is_replaced(artist: Artist) -> None:
    await artist.draw(chart("BEFORE"))
    before = artist.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)

    async def drawn() -> bool:
        return await artist.draw(chart(f"AFTER{uuid4().hex}")) is not None

    await eventually(drawn)
    assert artist.pid not in {None, before}


_HEAD = """
import sys, time

def say(body):
    sys.stdout.buffer.write(bytes([1]) + len(body).to_bytes(4, "big") + body)
    sys.stdout.buffer.flush()

say(b"warm")
"""
_HANGS = _HEAD + "time.sleep(600)"  # nobody waits for its end: it is killed for never answering
_ANSWERS = (
    _HEAD
    + """
while size := sys.stdin.buffer.read(4):
    sys.stdin.buffer.read(int.from_bytes(size, "big"))
    say(b"picture")
"""
)


def program(text: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-c", text)


async def test_a_child_that_hangs_costs_the_picture_and_is_ended() -> None:
    one = Artist(timeout_s=0.3, program=program(_HANGS))
    try:
        while one.pid is None:
            assert await one.draw(chart(uuid4().hex)) is None
        pid = one.pid
        await eventually(lambda: one.pid != pid)
    finally:
        await one.close()
    assert one.pid is None


async def test_a_child_that_does_not_start_is_not_started_again_for_a_while(tmp_path: Path) -> None:
    now, started = [0.0], tmp_path / "started"
    broken = program(f"open({str(started)!r}, 'a').write('x'); raise SystemExit(1)")
    one = Artist(timeout_s=60.0, program=broken, clock=lambda: now[0])
    starts: list[int] = []
    for at in (0.0, 1.0, 59.0, 61.0):
        now[0] = at
        assert await one.draw(chart(str(at))) is None
        starts.append(started.stat().st_size)
    await one.close()
    assert starts == [1, 1, 1, 2]


async def test_more_charts_than_the_burst_are_not_drawn_until_time_has_passed() -> None:
    now = [0.0]
    one = Artist(timeout_s=60.0, burst=3, program=program(_ANSWERS), clock=lambda: now[0])
    try:
        first = [await one.draw(chart(f"A{n}")) for n in range(5)]
        assert first == [b"picture"] * 3 + [None] * 2
        assert await one.draw(chart("A0")) == b"picture"  # kept, and free
        now[0] = 2.0
        assert [await one.draw(chart(f"B{n}")) for n in range(2)] == [b"picture", None]
    finally:
        await one.close()


async def test_a_child_without_work_ends_and_the_next_chart_starts_another() -> None:
    one = Artist(timeout_s=60.0, idle_s=0.05, program=program(_ANSWERS))
    try:
        assert await one.draw(chart("A")) == b"picture"
        await eventually(lambda: one.pid is None)
        assert await one.draw(chart("B")) == b"picture"
    finally:
        await one.close()


@given(st.lists(st.tuples(st.integers(), st.floats(1, 2)), max_size=900), st.integers(2, 50))
def test_a_thinned_line_keeps_its_ends_and_its_order(points: list[tuple[int, float]], most: int) -> None:
    points.sort()
    kept = thinned(points, most)
    assert len(kept) == min(len(points), most)
    assert list(kept) == sorted(kept)
    assert set(kept) <= set(points)
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_a_day_in_new_york_has_as_many_hours_as_it_has() -> None:
    hours = [(end.astimezone(UTC) - start.astimezone(UTC)) / timedelta(hours=1) for start, end in map(day_of, DAYS)]
    assert hours == [23, 24, 25]


DAYS = (date(2026, 3, 8), date(2026, 6, 1), date(2026, 11, 1))


def test_a_picture_is_told_in_words() -> None:
    made = chart_of(
        "AAPL",
        SESSION,
        [(NOW, 195.1), (NOW + timedelta(hours=1), 196.0)],
        sightings(activity()),
        as_of=NOW,
        simulated=True,
    )
    assert alt_of(made) == (
        "Simulated chart of AAPL on 2025-06-02. The price went from 195.10 to 196.00 dollars; the alert is at 10:30 "
        "New York time. 20 Jun 200 call: volume 5,000 over 400 open."
    )


def quote(symbol: str = "AAPL", price: float | None = 195.0, at: datetime = NOW, **fields: Any) -> QuoteTaken:
    usual: dict[str, Any] = {"source": "cboe", "simulated": False, "close": price, "bid": None, "ask": None}
    return QuoteTaken(id=uuid4(), time=at, symbol=symbol, as_of=at, **(usual | fields))


@pytest.mark.parametrize(
    ("fields", "price"),
    [
        ({}, 195.0),
        ({"close": None, "bid": 10.0, "ask": 11.0}, 10.5),
        ({"close": None, "bid": 0.0, "ask": 11.0}, None),
        ({"close": float("nan")}, None),
        ({"close": -1.0}, None),
        ({"close": None}, None),
    ],
)
def test_a_price_is_the_sessions_or_the_middle_or_none(fields: dict[str, Any], price: float | None) -> None:
    assert price_of(quote(**fields)) == price


async def test_of_each_minute_the_newest_quote_is_kept_of_symbols_that_matter(bench: Bench) -> None:
    await bench.user("AAPL")
    await bench.tell(activity(contract("T"), symbol="TSLA"))
    pictures = Pictures(QuoteStore(), _nothing, bench.door)
    late = NOW + timedelta(seconds=20)
    await bench.handle(pictures.keep, [quote(price=2.0, at=late), quote(price=1.0), quote("MSFT"), quote("TSLA")])
    await bench.handle(pictures.keep, [quote(price=3.0, at=NOW + timedelta(seconds=10)), quote("TSLA", None)])
    await bench.handle(pictures.keep, [quote(price=4.0, at=NOW + timedelta(minutes=1))])
    rows = [(row["symbol"], row["price"]) for row in await bench.rows("quotes order by symbol, minute")]
    assert rows == [("AAPL", 2.0), ("AAPL", 4.0), ("TSLA", 195.0)]
    store = QuoteStore()
    await store.forget(bench.door.transaction, NOW + timedelta(seconds=30))
    assert [row["price"] for row in await bench.rows("quotes")] == [4.0]


async def test_without_charts_no_quotes_are_kept(bench: Bench) -> None:
    await bench.user("AAPL")
    await bench.handle(Pictures(QuoteStore(), None, bench.door).keep, [quote()])
    assert await bench.rows("quotes") == []


async def _nothing(_: Chart) -> bytes | None:
    return None


@pytest.mark.parametrize("simulated", [False, True])
async def test_an_alerts_picture_has_its_sessions_quotes_and_says_when_one_was_simulated(
    bench: Bench, simulated: bool
) -> None:
    await bench.user("AAPL")
    await bench.tell(activity())
    asked: list[Chart] = []

    async def draw(wanted: Chart) -> bytes | None:
        asked.append(wanted)
        return b"png"

    pictures = Pictures(QuoteStore(), draw, bench.door)
    yesterday = quote(price=1.0, at=NOW - timedelta(days=1))
    quotes = [yesterday, quote(), quote(price=196.0, at=NOW + timedelta(minutes=9), simulated=simulated)]
    await bench.handle(pictures.keep, quotes)
    (alert,) = await bench.rows("alerts")
    picture = await pictures.of_alert(alert)
    assert picture is not None
    assert picture.png == b"png"
    (made,) = asked
    assert [price for _, price in made.points] == [195.0, 196.0]
    assert made.marked == int(NOW.timestamp())
    assert made.bars == (Bar("20 Jun 200 call", 5_000, 400),)
    assert made.simulated is simulated


@pytest.mark.parametrize("png", [b"png", None])
async def test_an_alert_goes_out_with_its_picture_or_without_but_it_goes_out(bench: Bench, png: bytes | None) -> None:
    async def draw(_: Chart) -> bytes | None:
        return png

    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.tell(activity())
    pictures = Pictures(QuoteStore(), draw, bench.door)
    work = Delivery(
        "discord",
        bench.discord,
        bench.store,
        bench.notices,
        bench.door,
        router=bench.router,
        targets=bench.targets,
        clicks=bench.clicks,
        clock=bench.clock,
        pictures=pictures,
    ).work(1)
    worker = Worker(work, bench.door, bench.clock, draw=lambda: 0.5)
    await worker.turn()
    await worker.idle()
    (sent,) = bench.discord.sent
    assert sent.image == png
    assert sent.fields.get("image_alt") == (png and "Chart of AAPL on 2025-06-02. " + TOLD)
    assert [row["status"] for row in await bench.rows("deliveries")] == ["done"]


TOLD = "20 Jun 200 call: volume 5,000 over 400 open."


async def test_an_owner_sees_the_chart_of_an_alert_and_nobody_else_does(client: Client) -> None:
    user, other = await client.bench.user("AAPL"), uuid4()
    await client.bench.tell(activity(contract("A", 90, 1_000_000)))
    (alert,) = await client.bench.rows("alerts")
    path = f"/api/alerts/{user}/{alert['alert_id']}/chart.png"

    answers: list[httpx.Response] = []

    async def shown() -> bool:
        answers.append(await client("GET", path, user))  # the child may take longer to start than one request waits
        assert answers[-1].status_code in {200, 503}
        return answers[-1].status_code == 200

    await eventually(shown)
    assert answers[-1].headers["content-type"] == "image/png"
    assert size_of(answers[-1].content)[0] == 720
    assert (await client("GET", path, other)).status_code == 403
    assert (await client("GET", f"/api/alerts/{other}/{alert['alert_id']}/chart.png", other)).status_code == 404
