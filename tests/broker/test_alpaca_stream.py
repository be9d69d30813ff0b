"""Alpaca's trade updates: what the recorded frames say, and what may go wrong with a line."""

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.broker.adapters.alpaca import Alpaca
from services.broker.domain.instruments import instrument
from services.broker.domain.lifecycle import apply
from services.broker.domain.orders import FillBooked, Leg, Order, Report
from services.broker.ports import Update, VenueRefused
from shared.errors import Transient
from tests.broker.alpaca_rig import ACCOUNT, SECRETS, AlpacaRig, AlpacaRigs
from tests.broker.samples import terms
from tests.conftest import eventually, recorded

PRICE = Decimal("10.25")


@pytest.fixture
async def rig() -> AsyncGenerator[AlpacaRig]:
    async with AlpacaRigs().open() as opened:
        yield opened


def new(**changes: Any) -> Order:
    return Order(uuid4(), ACCOUNT.id, "alpaca", terms(10, **changes))


async def heard(updates: AsyncIterator[Update], count: int) -> Sequence[Update]:
    async with asyncio.timeout(20):
        return [await anext(updates) for _ in range(count)]


def recorded_frames(order_id: UUID) -> list[dict[str, Any]]:
    """Return the recorded frames by their event, as if the order were ours."""
    told = json.loads(recorded("reference", "alpaca_trade_updates.json").read_text())
    frames = {one["data"]["event"]: one for one in told["frames"] if one["stream"] == "trade_updates"}
    for one in frames.values():
        one["data"]["order"]["client_order_id"] = f"openbell-{order_id}"
    return [frames[name] for name in told["replay_test"]["sequence"]]


# What frames say


@pytest.mark.parametrize("binary", [True, False])
async def test_the_recorded_replay_books_one_fill(rig: AlpacaRig, binary: bool):
    rig.alpaca.binary = binary
    of = instrument("DOGE/USD")
    order = Order(uuid4(), ACCOUNT.id, "alpaca", terms(Decimal("129.7"), "sell", of, type="market", limit=None))
    order = apply(order, Report("submit_sent")).order
    booked: list[FillBooked] = []
    async with rig.venue.stream() as updates:
        frames = recorded_frames(order.id)
        for frame in frames:
            rig.alpaca.send(frame)
        for update in await heard(updates, len(frames)):
            step = apply(order, update.report)
            order = step.order
            booked += [fact for fact in step.facts if isinstance(fact, FillBooked)]
    assert order.state == "filled"
    assert [(one.fill.quantity, one.fill.price, one.fill.provisional) for one in booked] == [
        (Decimal("129.7"), Decimal("0.0851119"), False)
    ]
    assert list(order.executions) == [(0, "a0b4b946-3ed9-4fd6-bb10-d1c5f28415aa")]


async def test_a_frame_tells_its_own_execution_and_the_orders_sums(rig: AlpacaRig):
    order = new()
    await rig.venue.submit(order)
    async with rig.venue.stream() as updates:
        first = await rig.fill(order.id, Decimal(4), Decimal(10))
        second = await rig.fill(order.id, Decimal(6), Decimal(11))
        one, other = await heard(updates, 2)
    assert (one.report.kind, other.report.kind) == ("fill", "filled")
    assert [(it.id, it.quantity, it.price) for it in one.report.executions] == [(first, 4, 10)]
    assert [(it.id, it.quantity, it.price) for it in other.report.executions] == [(second, 6, 11)]
    assert [(it.quantity, it.average_price) for it in other.report.cumulative] == [(10, Decimal("10.6"))]


async def test_somebody_elses_orders_are_left_out(rig: AlpacaRig):
    order = new()
    async with rig.venue.stream() as updates:
        body = {"symbol": "AAPL", "qty": "1", "side": "buy", "type": "market", "time_in_force": "day"}
        rig.alpaca.books.place(body)
        rig.alpaca.books.place({**body, "client_order_id": "by hand"})
        rig.alpaca.books.place({**body, "client_order_id": "openbell-by-hand"})
        await rig.venue.submit(order)
        (update,) = await heard(updates, 1)
    assert update.order_id == order.id


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        ("order_cancel_rejected", "cancel_rejected"),
        ("order_replace_rejected", "replace_rejected"),
        ("restated", "accepted"),
        ("trade_bust", "accepted"),
        ("something new", "accepted"),
    ],
)
async def test_events_beside_the_usual_ones_are_told_by_what_they_mean(rig: AlpacaRig, event: str, kind: str):
    order = new()
    await rig.venue.submit(order)
    async with rig.venue.stream() as updates:
        rig.alpaca.books.tell(event, rig.order(order.id), reason="too late")
        (update,) = await heard(updates, 1)
    assert (update.report.kind, update.report.reason, update.report.executions) == (kind, "too late", ())


async def test_a_corrected_trade_takes_the_place_of_the_first_one(rig: AlpacaRig):
    order = new()
    await rig.venue.submit(order)
    async with rig.venue.stream() as updates:
        first = await rig.fill(order.id, Decimal(4), PRICE)
        second = rig.alpaca.books.bust(rig.order(order.id), first, price=PRICE + 1)
        _, corrected = [one.report for one in await heard(updates, 2)]
    assert [(one.id, one.quantity, one.price, one.busted) for one in corrected.executions] == [
        (first, 4, PRICE + 1, True),
        (second, 4, PRICE + 1, False),
    ]
    assert [(one.quantity, one.average_price) for one in corrected.cumulative] == [(4, PRICE + 1)]


async def test_a_correction_without_the_first_trade_s_id_is_told_as_it_comes(rig: AlpacaRig):
    order = new()
    await rig.venue.submit(order)
    more = {"execution_id": "x", "qty": "4", "price": "101"}
    async with rig.venue.stream() as updates:
        rig.alpaca.books.tell("trade_correct", rig.order(order.id), **more)
        rig.alpaca.books.tell("trade_bust", rig.order(order.id), **more)
        told = [one.report.executions for one in await heard(updates, 2)]
    assert [[(one.id, one.quantity, one.price, one.busted) for one in each] for each in told] == [
        [("x", 4, 101, False)],
        [("x", 4, 101, True)],
    ]


async def test_a_leg_s_busted_trade_is_the_leg_s(rig: AlpacaRig):
    order = await spread(rig)
    async with rig.venue.stream() as updates:
        name = await rig.fill(order.id, Decimal(10), PRICE)
        await heard(updates, 3)
        rig.alpaca.books.bust(rig.order(order.id)["legs"][0], name)
        (told,) = await heard(updates, 1)
    assert told.order_id == order.id
    assert [(one.id, one.leg, one.quantity, one.busted) for one in told.report.executions] == [(name, 0, 20, True)]


async def spread(rig: AlpacaRig) -> Order:
    legs = (
        Leg(instrument("AAPL261218C00200000"), "buy", 2, opens=True),
        Leg(instrument("AAPL261218C00210000"), "sell", opens=True),
    )
    order = new(legs=legs, order_class="multi_leg", limit=PRICE)
    await rig.venue.submit(order)
    return order


async def test_the_legs_of_a_spread_tell_their_own_executions(rig: AlpacaRig):
    order = await spread(rig)
    async with rig.venue.stream() as updates:
        await rig.fill(order.id, Decimal(10), PRICE)
        reports = [one.report for one in await heard(updates, 3)]
    assert [[(it.leg, it.quantity) for it in one.executions] for one in reports] == [[(0, 20)], [(1, 10)], []]
    assert [(it.leg, it.quantity) for it in reports[2].cumulative] == [(0, 20), (1, 10)]
    assert reports[2].kind == "filled"
    net = [it.price * (2 if it.leg == 0 else -1) for one in reports for it in one.executions]
    assert sum(net) == PRICE


async def test_legs_that_alpaca_tells_in_another_order_are_known_by_what_is_traded(rig: AlpacaRig):
    order = await spread(rig)
    await rig.fill(order.id, Decimal(10), PRICE)
    rig.order(order.id)["legs"].reverse()
    await rig.reopen()
    report = await rig.venue.look_up(order)
    assert {(it.leg, it.quantity) for it in report.executions} == {(0, 20), (1, 10)}
    changes = await rig.venue.changes(report.executions[0].at)
    assert {(it.leg, it.quantity) for it in changes.orders[0].report.executions} == {(0, 20), (1, 10)}


# What may go wrong


async def test_keys_that_alpaca_does_not_take_are_refused_on_the_line(rig: AlpacaRig):
    venue = Alpaca(paper=rig.alpaca.url).open(ACCOUNT, {**SECRETS, "secret_key": "wrong"})
    with pytest.raises(VenueRefused):
        async with venue.stream():
            pytest.fail("it listens")


async def test_a_line_that_another_one_ends_is_told(rig: AlpacaRig):
    async with rig.venue.stream() as updates, rig.venue.stream():
        with pytest.raises(Transient):
            await heard(updates, 1)


@pytest.mark.parametrize(
    "frame",
    [
        "{",
        "[]",
        '{"stream": "trade_updates"}',
        '{"stream": "trade_updates", "data": {"event": "fill"}}',
        '{"stream": "trade_updates", "data": {"event": "fill", "order": {"client_order_id": null}}}',
    ],
)
async def test_a_frame_that_cannot_be_read_ends_the_line_so_that_it_is_asked_for(rig: AlpacaRig, frame: str):
    async with rig.venue.stream() as updates:
        rig.alpaca.send(frame)
        with pytest.raises(Transient):
            await heard(updates, 1)


async def test_a_fill_without_an_execution_id_ends_the_line(rig: AlpacaRig):
    order = new()
    await rig.venue.submit(order)
    async with rig.venue.stream() as updates:
        rig.alpaca.books.tell("fill", rig.order(order.id), qty="1", price="1", execution_id=None)
        with pytest.raises(Transient):
            await heard(updates, 1)


class Freezer:
    """Passes bytes on until it is frozen: then both sides hear nothing more, and no end."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def freeze(self) -> None:
        self._thawed.clear()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncGenerator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        server.close()
        await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            await asyncio.gather(self._pass(reader, far_writer), self._pass(far_reader, writer))
        except asyncio.CancelledError:  # the end of the test
            pass
        finally:
            for one in (writer, far_writer):
                one.close()
                with contextlib.suppress(OSError):
                    await one.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._thawed.wait()
            writer.write(data)
            await writer.drain()


async def test_a_line_that_falls_silent_is_told(rig: AlpacaRig):
    freezer = Freezer(rig.alpaca.url)
    async with freezer.serving() as url:
        venue = Alpaca(paper=url, ping_s=0.3).open(ACCOUNT, SECRETS)
        async with venue.stream() as updates:
            freezer.freeze()
            with pytest.raises(Transient):
                await heard(updates, 1)


def test_a_silent_line_is_noticed_within_a_minute():
    ping_s = inspect.signature(Alpaca.__init__).parameters["ping_s"].default
    assert 2 * ping_s < 60


async def test_a_line_that_was_left_is_closed(rig: AlpacaRig):
    async with rig.venue.stream():
        assert rig.alpaca.listeners == 1
    await eventually(lambda: rig.alpaca.listeners == 0)
    with pytest.raises(RuntimeError, match="ours"):
        async with rig.venue.stream():
            raise RuntimeError("ours")
    await eventually(lambda: rig.alpaca.listeners == 0)
