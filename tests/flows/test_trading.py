"""From unusual activity to a position: alert, order through the gateway, fill at the paper venue, message of it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy.local.kafka import RunningKafka
from services.broker import READS
from services.broker.adapters.paper.adapter import PaperAdapter
from services.broker.domain.matching import Model
from services.broker.domain.tickets import Rules
from services.broker.main import assemble
from services.broker.ports import Account
from services.broker.service.calendar import Calendar
from services.broker.settings import BrokerSettings
from services.broker.workers.paper import Ticking, hears
from services.data.main import build as build_data
from shared.clock import utc_now
from shared.service import Environment, Service
from shared.sessions import Sessions, TradingSession
from shared.settings import SharedSettings
from tests.conftest import ManualClock, eventually
from tests.fakes.discord import FakeDiscord
from tests.flows.stack import Flow, flowing


@pytest.fixture
def discord() -> Generator[FakeDiscord]:
    with FakeDiscord() as running:
        yield running


@pytest.fixture
async def flow(
    settings: SharedSettings, database_url: str, clean_kafka: RunningKafka, discord: FakeDiscord, tmp_path: Path
) -> AsyncGenerator[Flow]:
    env = {"OPENBELL_ALERTS_DISCORD_BASE": discord.base}
    async with flowing(settings, database_url, tmp_path, env) as running:
        await running.sign_up()
        yield running


async def always_open() -> Sessions:
    """An exchange that trades the whole day, whatever day it is."""
    today = datetime.combine(utc_now().date(), time.min, UTC)
    days = [today + timedelta(days=day) for day in range(-5, 5)]
    return Sessions([TradingSession(day.date(), day, day + timedelta(hours=24)) for day in days])


async def closed_for_days() -> Sessions:
    """An exchange that traded last week, and will next week."""
    today = datetime.combine(utc_now().date(), time.min, UTC)
    days = [today + timedelta(days=day) for day in (-7, 7)]
    return Sessions([TradingSession(day.date(), day, day + timedelta(hours=6)) for day in days])


def brokerage(settings: SharedSettings, sessions: Callable[[], Awaitable[Sessions]] = always_open) -> Service:
    """The brokerage with its paper venue, as its main wires it."""
    env, own = Environment(settings), BrokerSettings()
    service, calendar = Service("broker", env, READS), Calendar(sessions)
    model = Model(slippage_bps=own.paper_slippage_bps, stale_after=timedelta(seconds=own.quote_age_s))
    paper = PaperAdapter(service.db, service.clock, Rules(calendar.hours, model, seed=1))
    service.closes(paper)
    service.work(Ticking(paper, calendar))
    return assemble(service, env, own, [paper], _no_secrets, calendar=calendar, hear=[hears(paper, calendar)])


async def _no_secrets(account: Account) -> Mapping[str, str]:
    return {}


async def test_unusual_activity_ends_in_a_position_and_a_message_of_the_fill(
    flow: Flow, discord: FakeDiscord, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = discord.webhook()
    await flow.watch("AAPL")
    await flow.channel("discord", hook)
    await flow.knows_rules(symbols=1)
    monkeypatch.setenv("OPENBELL_DATA_SOURCE", "simulator")
    monkeypatch.setenv("OPENBELL_DATA_SYMBOLS", "AAPL")
    monkeypatch.setenv("OPENBELL_BROKER_QUOTE_AGE_S", "86400")
    broker = brokerage(flow.settings)
    flow.gateway.neighbours["broker"] = broker.app
    async with broker.running():
        late = ManualClock(datetime.combine(utc_now().date(), time.min, UTC) - timedelta(hours=1))
        async with build_data(Environment(flow.settings, late)).running():
            await eventually(lambda: _alerted(flow), 60)
        async with build_data(Environment(flow.settings)).running():  # what the market says now
            await eventually(lambda: _quoted(flow), 60)
        await eventually(lambda: len(discord.posts) >= 1)
        assert "AAPL" in discord.posts[0].payload["content"]

        await eventually(lambda: _has_account(flow))
        (account,) = await flow.call("GET", "/broker/accounts")
        assert (account["venue"], account["mode"]) == ("paper", "paper")
        quote = (await flow.rows("select bid, ask from broker.quotes where symbol = 'AAPL'"))[0]
        terms = {"legs": [{"symbol": "AAPL", "side": "buy"}], "type": "market", "quantity": "10"}
        body = {"account_id": account["id"], "terms": terms}
        order_id = (await flow.call("POST", "/broker/orders", json=body, expect=202))["order_id"]

        order = await _ended(flow, order_id)
        assert order["state"] == "filled", order
        price = float(order["average_price"])
        assert quote["ask"] <= price <= float(quote["ask"]) * 1.001, "the ask, and slippage"
        positions = await flow.call("GET", f"/broker/positions?account_id={account['id']}")
        assert [(one["symbol"], float(one["quantity"])) for one in positions] == [("AAPL", 10)]
        assert float(positions[0]["average_price"]) == pytest.approx(price)

        def messages() -> list[str]:
            told = [post.payload["content"] for post in discord.posts]
            return [one for one in told if "Bought 10 AAPL at" in one and "(paper)" in one]

        await eventually(lambda: len(messages()) == 1)
    notices = (await flow.call("GET", f"/api/alerts/{flow.user_id}/notices"))["notices"]
    assert [one["kind"] for one in notices] == ["order_filled"]


async def test_a_crypto_order_goes_through_on_paper_while_the_exchange_is_closed(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBELL_DATA_SOURCE", "simulator")
    monkeypatch.setenv("OPENBELL_DATA_PAIRS", "BTC/USD,ETH/USD")
    monkeypatch.setenv("OPENBELL_DATA_PAIRS_EVERY_S", "0.5")
    broker = brokerage(flow.settings, closed_for_days)
    flow.gateway.neighbours["broker"] = broker.app
    async with broker.running(), build_data(Environment(flow.settings)).running():
        await eventually(lambda: _has_account(flow))
        await eventually(lambda: _paired(flow), 60)
        (account,) = await flow.call("GET", "/broker/accounts")
        exits = {"take_profit": "1000000", "stop_loss": "1"}
        for more in ({}, {"order_class": "bracket", "exits": exits}):
            terms = {"legs": [{"symbol": "btc/usd", "side": "buy"}], "type": "market", "time_in_force": "gtc"}
            body = {"account_id": account["id"], "terms": terms | {"quantity": "0.125"} | more}
            order_id = (await flow.call("POST", "/broker/orders", json=body, expect=202))["order_id"]
            order = await _ended(flow, order_id)
            assert order["state"] == "filled", order
            quote = (await flow.rows("select * from broker.quotes where symbol = 'BTC/USD'"))[0]
            assert quote["simulated"]
            assert float(order["average_price"]) == pytest.approx(float(quote["ask"]), rel=0.01)
        positions = await flow.call("GET", f"/broker/positions?account_id={account['id']}")
        assert [(one["symbol"], float(one["quantity"])) for one in positions] == [("BTC/USD", 0.25)]

        async def protected() -> bool:
            orders = (await flow.call("GET", f"/broker/orders?account_id={account['id']}"))["orders"]
            return any(one["state"] == "accepted" and one["terms"]["stop"] == "1" for one in orders)

        await eventually(protected)


async def _ended(flow: Flow, order_id: str) -> dict[str, Any]:
    """Return an order once it is over."""
    order: dict[str, Any] = {}

    async def over() -> bool:
        answer = await flow.http.get(f"/broker/orders/{order_id}", headers=flow.user)
        order.update(answer.json() if answer.status_code == 200 else {})
        return order.get("state") in {"filled", "rejected", "canceled", "expired"}

    await eventually(over)
    return order


async def _paired(flow: Flow) -> bool:
    return len(await flow.rows("select 1 from broker.quotes where symbol like '%/%'")) == 2


async def _alerted(flow: Flow) -> bool:
    return bool((await flow.call("GET", f"/api/alerts/{flow.user_id}"))["alerts"])


async def _has_account(flow: Flow) -> bool:
    return bool(await flow.call("GET", "/broker/accounts"))


async def _quoted(flow: Flow) -> bool:
    return bool(await flow.rows("select 1 from broker.quotes where at > now() - interval '12 hours'"))
