"""What stands before requests to venues: each account's pace, and a breaker for all accounts of an address."""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final
from uuid import UUID, uuid4

import pytest

from services.broker.adapters.alpaca import Alpaca
from services.broker.adapters.alpaca.wire import BURST, PER_S
from services.broker.adapters.guard import FAILURES, LONGEST_S, OPEN_S, Guard, Pace
from services.broker.adapters.tastytrade import Tastytrade
from services.broker.adapters.tastytrade.venue import Hosts
from services.broker.domain.instruments import Crypto, Instrument
from services.broker.domain.orders import Order
from services.broker.ports import Account, Adapter, Venue, VenueRefused
from shared.clock import utc_now
from shared.errors import Transient
from shared.work import Busy, OutcomeUnknown
from tests.broker import alpaca_rig, ccxt_rig, tastytrade_rig
from tests.broker.samples import AAPL, T0, terms
from tests.conftest import ManualClock, eventually
from tests.fakes.alpaca import Alpaca as AlpacaStandIn

BTC: Final = Crypto("BTC", "USD")
NOBODY = "http://127.0.0.1:1"
DOWN: list[tuple[Adapter, Account, Mapping[str, str]]] = [
    (Alpaca(paper=NOBODY, live=NOBODY), alpaca_rig.ACCOUNT, alpaca_rig.SECRETS),
    (
        Tastytrade(utc_now, live=Hosts(NOBODY, NOBODY), paper=Hosts(NOBODY, NOBODY)),
        Account(UUID(int=9), UUID(int=3), "tastytrade", "paper", "5WX00000"),
        tastytrade_rig.SECRETS,
    ),
    (ccxt_rig.adapter_over(ccxt_rig.NOWHERE), ccxt_rig.ACCOUNT, ccxt_rig.SECRETS),
]


def new(of: Instrument = AAPL) -> Order:
    return Order(uuid4(), UUID(int=7), "any", terms(1, of=of, time_in_force="gtc"))


@dataclass
class Slept:
    """A clock, and a sleep that only moves it."""

    clock: ManualClock = field(default_factory=lambda: ManualClock(T0))
    waits: list[float] = field(default_factory=list[float])

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.advance(seconds)


async def fails(venue: Venue, *, stopped: bool) -> Transient:
    """Ask for the money; tell the error. `stopped` says whether the request is to go out."""
    with pytest.raises(Transient) as raised:
        await venue.balance()
    assert ("nothing is sent" in raised.value.message) == stopped, raised.value.message
    return raised.value


# The breaker


@pytest.mark.parametrize(("adapter", "account", "secrets"), DOWN, ids=lambda one: getattr(one, "name", ""))
async def test_a_venue_that_only_fails_is_left_alone_by_all_accounts_of_its_mode(
    adapter: Adapter, account: Account, secrets: Mapping[str, str]
) -> None:
    one, other = adapter.open(account, secrets), adapter.open(replace(account, id=UUID(int=8)), secrets)
    for _ in range(FAILURES // 2):
        await fails(one, stopped=False)
        await fails(other, stopped=False)
    for venue in (one, other):
        told = await fails(venue, stopped=True)
        assert 1 <= (told.retry_after_s or 0) <= OPEN_S
    with pytest.raises(Transient, match="nothing is sent"):  # certainly not, so that it may go again
        await one.submit(new())
    for venue in (one, other):
        await venue.close()


async def test_paper_that_is_down_stops_nothing_live() -> None:
    adapter, account, secrets = DOWN[0]
    assert isinstance(adapter, Alpaca)
    adapter = Alpaca(paper=NOBODY, live=NOBODY)
    paper, live = adapter.open(account, secrets), adapter.open(replace(account, mode="live"), secrets)
    for _ in range(FAILURES):
        await fails(paper, stopped=False)
    await fails(paper, stopped=True)
    await fails(live, stopped=False)
    await paper.close()
    await live.close()


def answers(alpaca: AlpacaStandIn, status: int, times: int, body: Any = None) -> None:
    alpaca.answers.extend([(status, body or {"message": "no"}, {})] * times)


async def test_it_is_asked_again_after_a_while_and_one_answer_is_enough() -> None:
    with AlpacaStandIn() as alpaca:
        venue = Alpaca(paper=alpaca.url, open_s=0.2).open(alpaca_rig.ACCOUNT, alpaca_rig.SECRETS)
        answers(alpaca, 500, FAILURES)
        for _ in range(FAILURES):
            await fails(venue, stopped=False)
        asked = len(alpaca.requests)

        async def answered() -> bool:
            with contextlib.suppress(Transient):
                return bool(await venue.balance())
            return False

        await eventually(answered)
        assert len(alpaca.requests) == asked + 1
        answers(alpaca, 500, FAILURES - 1)
        for _ in range(FAILURES - 1):
            await fails(venue, stopped=False)
        assert await venue.balance()
        await venue.close()


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (429, {"message": "slowly"}, Busy),
        (403, {"message": "forbidden."}, VenueRefused),
        (422, {"code": 42210000, "message": "invalid"}, VenueRefused),
    ],
)
async def test_a_refusal_is_an_answer(status: int, body: Any, error: type[Exception]) -> None:
    with AlpacaStandIn() as alpaca:
        venue = Alpaca(paper=alpaca.url).open(alpaca_rig.ACCOUNT, alpaca_rig.SECRETS)
        answers(alpaca, status, FAILURES + 1, body)
        for _ in range(FAILURES + 1):
            with pytest.raises(error):
                await venue.balance()
        assert await venue.balance()
        await venue.close()


async def test_an_exchange_that_declines_orders_answers() -> None:
    async with ccxt_rig.CcxtRigs().open() as rig:
        for _ in range(FAILURES + 1):
            rig.refuse_next("not today")
            assert (await rig.venue.submit(new(BTC))).kind == "rejected"
        assert (await rig.venue.look_up(new(BTC))).kind == "not_found"


async def test_writes_whose_outcome_is_unknown_open_it_too() -> None:
    guard = Guard("somewhere", failures=2)
    for _ in range(2):
        with pytest.raises(OutcomeUnknown):
            async with guard.request():
                raise OutcomeUnknown
    with pytest.raises(Transient, match="nothing is sent"):
        async with guard.request():
            raise AssertionError("it went out")


async def test_a_venue_that_keeps_us_waiting_until_we_give_up_has_failed() -> None:
    guard = Guard("somewhere", failures=1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), guard.request():
            await asyncio.Event().wait()
    with pytest.raises(Transient, match="nothing is sent"):
        async with guard.request():
            raise AssertionError("it went out")


# The pace


async def test_an_account_asks_at_once_then_in_its_turn_then_later() -> None:
    slept = Slept()
    pace = Pace(per_s=2, burst=3, clock=slept.clock, sleep=slept.sleep)
    for _ in range(3):
        await pace.turn()
    assert slept.waits == []
    await pace.turn()
    assert slept.waits == [0.5]


async def test_who_would_wait_too_long_is_put_off_and_takes_no_turn() -> None:
    clock, waits = ManualClock(T0), list[float]()

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    pace = Pace(per_s=1, burst=1, clock=clock, sleep=wait)
    for _ in range(2):
        await pace.turn()
    for _ in range(3):
        with pytest.raises(Busy) as raised:
            await pace.turn()
        assert raised.value.retry_after_s == 2
    clock.advance(1)
    await pace.turn()
    assert waits == [LONGEST_S, LONGEST_S]


async def test_no_minute_at_alpaca_has_more_requests_than_it_takes() -> None:
    slept = Slept()
    pace = Pace(per_s=PER_S, burst=BURST, clock=slept.clock, sleep=slept.sleep)
    ends, count = T0 + timedelta(minutes=1), 0
    while slept.clock() < ends:
        await pace.turn()
        count += slept.clock() < ends
    assert 190 <= count <= 200


async def test_an_account_that_asks_too_often_is_stopped_before_its_venue_says_so() -> None:
    with AlpacaStandIn() as alpaca:
        venue = Alpaca(paper=alpaca.url).open(alpaca_rig.ACCOUNT, alpaca_rig.SECRETS)
        told = await asyncio.gather(*(venue.balance() for _ in range(BURST * 2)), return_exceptions=True)
        put_off = [one for one in told if isinstance(one, Busy)]
        assert len(put_off) > BURST / 2
        assert all("too often" in one.message for one in put_off)
        assert len(alpaca.requests) == len(told) - len(put_off) >= BURST
        await venue.close()
