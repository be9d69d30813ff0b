"""Where tastytrade's accounts go, their tokens and their streamer: shared, renewed, lost, and nowhere told."""

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.broker.adapters.tastytrade import Tastytrade
from services.broker.adapters.tastytrade.venue import TastytradeVenue
from services.broker.domain.orders import Leg, Order
from services.broker.ports import Account, Update, VenueRefused
from shared.clock import utc_now
from shared.errors import Transient
from shared.work import Busy
from tests.broker.samples import AAPL, ACCOUNT, terms
from tests.broker.tastytrade_rig import SECRETS, opened
from tests.conftest import ManualClock, eventually, recorded
from tests.fakes.tastytrade import CLIENT_SECRET, REFRESH_TOKEN, FakeTastytrade, Fault


@pytest.fixture
async def fake() -> AsyncGenerator[FakeTastytrade]:
    async with FakeTastytrade() as running:
        yield running


@pytest.fixture
async def venue(fake: FakeTastytrade) -> AsyncGenerator[TastytradeVenue]:
    made = opened(fake)
    yield made
    await made.close()


def new(**changes: Any) -> Order:
    return Order(uuid4(), ACCOUNT, "tastytrade", terms(10, **changes))


def read(name: str) -> Any:
    return json.loads(recorded("data", "brokers", "tastytrade", name).read_text())


# Where it goes


@pytest.mark.parametrize(("mode", "goes_live"), [("live", True), ("paper", False), ("Live", False), ("", False)])
async def test_only_an_account_that_reads_exactly_live_goes_where_real_money_is(mode: Any, goes_live: bool):
    async with FakeTastytrade() as live, FakeTastytrade() as paper:
        adapter = Tastytrade(utc_now, live=live.hosts, paper=paper.hosts)
        venue = adapter.open(Account(ACCOUNT, UUID(int=3), "tastytrade", mode, live.desk.account), SECRETS)
        await venue.submit(new())
        async with venue.stream():
            assert (live.listeners, paper.listeners) == (int(goes_live), int(not goes_live))
        await venue.close()
        assert (len(live.desk.orders), len(paper.desk.orders)) == (int(goes_live), int(not goes_live))


@pytest.mark.parametrize("missing", ["refresh_token", "client_secret"])
def test_a_missing_secret_is_refused(missing: str):
    account = Account(ACCOUNT, UUID(int=3), "tastytrade", "paper", "5WX06827")
    with pytest.raises(VenueRefused, match=missing):
        Tastytrade(utc_now).open(account, {**SECRETS, missing: ""})


@pytest.mark.parametrize("reference", ["", "5WX/../6", "5WX 6"])
def test_an_account_number_that_is_none_is_refused(reference: str):
    account = Account(ACCOUNT, UUID(int=3), "tastytrade", "paper", reference)
    with pytest.raises(VenueRefused, match="account number"):
        Tastytrade(utc_now).open(account, SECRETS)


# Tokens


async def test_twenty_calls_at_once_ask_for_one_token(fake: FakeTastytrade, venue: TastytradeVenue):
    await asyncio.gather(*(venue.balance() for _ in range(20)))
    assert len(fake.asked("POST", "/oauth/token")) == 1
    fake.expire_tokens()
    await asyncio.gather(*(venue.balance() for _ in range(20)))
    assert len(fake.asked("POST", "/oauth/token")) == 2
    assert len(fake.asked("GET", "/balances$")) == 40


async def test_a_token_is_renewed_a_minute_before_it_ends(fake: FakeTastytrade):
    clock = ManualClock(utc_now())
    venue = opened(fake, clock)
    await venue.balance()
    clock.advance(839)
    await venue.balance()
    assert len(fake.tokens) == 1
    clock.advance(2)
    await venue.balance()
    assert len(fake.tokens) == 2
    await venue.close()


async def test_a_write_is_sent_again_with_another_token_once_and_has_one_effect(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    await venue.balance()
    fake.expire_tokens()
    order = new(legs=(Leg(AAPL, "buy", opens=True),))
    assert (await venue.submit(order)).kind == "accepted"
    assert fake.desk.placed == [str(order.id)]
    fake.fail("POST", "/orders$", Fault(401), Fault(401))
    with pytest.raises(VenueRefused):
        await venue.submit(new(legs=(Leg(AAPL, "buy", opens=True),)))
    assert fake.desk.placed == [str(order.id)]


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault(401), VenueRefused),
        (Fault(400), VenueRefused),
        (Fault(429), Busy),
        (Fault(500), Transient),
        (Fault(0), Transient),
        (Fault(200, body="{}"), Transient),
        (Fault(200, body="<html>"), Transient),
    ],
)
async def test_what_asking_for_a_token_may_end_in_and_the_next_call_asks_again(
    fake: FakeTastytrade, venue: TastytradeVenue, fault: Fault, expected: type[Exception]
):
    fake.fail("POST", "/oauth/token", fault)
    answers = await asyncio.gather(*(venue.submit(new()) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, expected) for one in answers)
    assert (await venue.balance()).cash == 100_000


async def test_a_caller_that_goes_away_does_not_take_the_token_from_others(
    fake: FakeTastytrade, venue: TastytradeVenue
):
    gone, stays = asyncio.create_task(venue.balance()), asyncio.create_task(venue.balance())
    await eventually(lambda: venue._wire._renewing is not None)
    gone.cancel()
    assert (await stays).cash == 100_000
    assert gone.cancelled()
    assert len(fake.tokens) == 1


async def test_no_secret_is_in_any_log_or_error(fake: FakeTastytrade, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    venue = opened(fake)
    errors = list[BaseException]()

    async def fails(*faults: tuple[str, str, Fault]) -> None:
        for one in faults:
            fake.fail(one[0], one[1], one[2])
        try:
            await venue.submit(new())
        except Exception as error:  # noqa: BLE001 - whatever it is
            errors.append(error)

    for fault in (Fault(401), Fault(500), Fault(0), Fault(200, body="<html>")):
        await fails(("POST", "/oauth/token", fault))
    for fault in (Fault(403), Fault(500), Fault(0), Fault(200, body="<html>"), Fault(429)):
        await fails(("POST", "/orders$", fault))
    async with venue.stream() as frames:
        await eventually(lambda: fake.heartbeats > 0)
        fake.drop_stream()
        with pytest.raises(Transient) as lost:
            await anext(frames)
        errors.append(lost.value)
    await venue.close()
    assert len(errors) == 10
    said = [repr(vars(one)) + one.getMessage() for one in caplog.records if not one.name.startswith("aiohttp")]
    for error in errors:
        chain: BaseException | None = error
        while chain is not None:
            said += [str(chain), repr(chain), repr(vars(chain))]
            chain = chain.__cause__
    assert not re.search(f"{CLIENT_SECRET}|{REFRESH_TOKEN}|access-token-|{fake.desk.account}", "\n".join(said))


# The streamer


async def first(frames: Any) -> Update:
    async with asyncio.timeout(10):
        return await anext(frames)


async def test_frames_of_others_orders_and_of_other_kinds_are_passed_over(fake: FakeTastytrade, venue: TastytradeVenue):
    theirs = read("converter__DeserializeStreamFilledOrderMessage__0.json")
    order = new()
    async with venue.stream() as frames:
        fake.send(theirs)
        fake.send({"type": "AccountBalance", "data": {}, "timestamp": 1})
        fake.send(read("converter__DeserializeStreamHeartbeatMessage__i0.json"))
        await venue.submit(order)
        told = await first(frames)
    assert (told.order_id, told.report.kind) == (order.id, "accepted")


async def test_messages_that_come_together_are_told_one_by_one(fake: FakeTastytrade, venue: TastytradeVenue):
    order = new()
    await venue.submit(order)
    placed = fake.desk.under(str(order.id))
    async with venue.stream() as frames:
        frame = {"type": "Order", "data": fake.desk.json(placed), "timestamp": 1}
        fake.send({"results": [frame, frame]})
        assert [(await first(frames)).order_id for _ in range(2)] == [order.id, order.id]


@pytest.mark.parametrize(
    "frame", [{"type": "Order", "data": {"id": 1}}, {"status": "error", "action": "heartbeat", "message": "failed"}]
)
async def test_a_frame_that_cannot_be_read_breaks_the_line(
    fake: FakeTastytrade, venue: TastytradeVenue, frame: dict[str, Any]
):
    if "data" in frame:
        frame = {**frame, "data": {**frame["data"], "external-identifier": str(uuid4())}}
    async with venue.stream() as frames:
        fake.send(frame)
        with pytest.raises(Transient):
            await first(frames)


async def test_a_line_that_has_fallen_silent_is_lost(fake: FakeTastytrade):
    venue = opened(fake, beat_s=0.05, silent_s=0.3)
    async with venue.stream() as frames:
        fake.deaf = True
        with pytest.raises(Transient, match="TimeoutError"):
            await first(frames)
    await venue.close()


async def test_heartbeats_keep_a_quiet_line(fake: FakeTastytrade):
    venue = opened(fake, beat_s=0.05, silent_s=2)
    async with venue.stream() as frames:
        hearing = asyncio.ensure_future(first(frames))
        await eventually(lambda: fake.heartbeats > 3)
        assert not hearing.done()
        hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await hearing
    await venue.close()
    await eventually(lambda: fake.listeners == 0)


async def test_a_heartbeat_whose_token_has_ended_breaks_the_line_and_the_next_one_holds(fake: FakeTastytrade):
    venue = opened(fake, beat_s=0.05)
    async with venue.stream() as frames:
        fake.expire_tokens()
        with pytest.raises(Transient):
            await first(frames)
    with pytest.raises(Transient):  # the streamer does not take the old token, and another is asked for
        async with venue.stream():
            pass
    async with venue.stream():
        await eventually(lambda: fake.listeners == 1)
    await venue.close()


async def test_credentials_that_are_refused_are_told_when_the_line_is_opened(fake: FakeTastytrade):
    fake.fail("POST", "/oauth/token", Fault(401))
    venue = opened(fake)
    with pytest.raises(VenueRefused):
        async with venue.stream():
            pass
    await venue.close()
