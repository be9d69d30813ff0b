"""Dashboards are what their code says, ask for what exists, and after a run none of their panels is empty."""

import json
import os
import re
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
import yaml
from aiokafka import AIOKafkaProducer
from websockets.asyncio.client import connect

from deploy.grafana.generate import BOARDS, FOLDER, SOURCE, kustomization, render
from deploy.grafana.panel import Board, Panel
from deploy.local.kafka import RunningKafka
from deploy.metrics import OVER_REPLICAS, declared
from deploy.promql import reads
from deploy.tools import ToolMissing
from services.api.main import build as build_api
from services.api.main import create_admin
from shared.contracts.topics import CHAINS
from shared.service import Environment
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.deploy import exporters
from tests.deploy.missing import without
from tests.deploy.pictures import draw
from tests.deploy.prometheus import Prometheus, asking
from tests.fakes.discord import Answer, FakeDiscord
from tests.fakes.stripe import FakeStripe
from tests.flows.stack import ServiceProcess
from tests.payment.lives import Life

DEPLOY = FOLDER.parents[1]
METRICS = {metric.name: metric for metric in declared()}
OTHERS = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes"}
ASKED = [(board, panel, query) for board in BOARDS for panel in board.panels for query, _ in panel.asks]
PLAN = '[{"name":"pro","title":"Pro","price_usd":"29","entitlements":["pro"],"stripe_price":"price_pro"}]'


@pytest.mark.parametrize("board", BOARDS, ids=lambda one: one.uid)
def test_a_dashboard_is_what_its_code_makes(board: Board) -> None:
    written = (FOLDER / f"{board.uid}.json").read_text()
    assert written == render(board), "run `python -m deploy.grafana.generate`"


def test_there_are_no_others_and_each_is_found_by_grafana() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {board.uid for board in BOARDS}
    assert (FOLDER / "kustomization.yaml").read_text() == kustomization()
    sources = yaml.safe_load((FOLDER.parent / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert [one["uid"] for one in sources["datasources"]] == [SOURCE.uid]
    for path in FOLDER.glob("*.json"):
        panels = json.loads(path.read_text())["panels"]
        assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)


@pytest.mark.parametrize(("board", "panel", "query"), ASKED, ids=[str(number) for number in range(len(ASKED))])
def test_a_panel_asks_for_metrics_and_labels_that_exist(board: Board, panel: Panel, query: str) -> None:
    for read in reads(_plain(query)):
        metric = METRICS.get(read.metric(set(METRICS)))
        if panel.on_cluster:
            assert metric is None, f"{board.title}, {panel.title}: {read.name} is everywhere"
            continue
        if metric is None:
            assert read.name in OTHERS, f"{board.title}, {panel.title}: {read.name} is no metric of ours"
            continue
        assert read.labels <= {*metric.labels, "le"}, f"{metric.name} has no such label"
        shared = OVER_REPLICAS.get(metric.name) == "max"
        assert not (shared and read.within == "sum"), f"{metric.name} is the same on every replica"


def test_panels_of_exporters_ask_for_what_these_publish() -> None:
    try:
        known = exporters.cnpg() | exporters.kafka()
    except ToolMissing as missing:
        without(missing)
    kafka = yaml.safe_load_all((DEPLOY / "k8s" / "base" / "kafka.yaml").read_text())
    (reporter,) = [one["spec"]["kafka"]["metricsConfig"] for one in kafka if one["kind"] == "Kafka"]
    allowed = re.compile("|".join(reporter["values"]["allowList"]))
    asked = [query for board, panel, query in ASKED if panel.on_cluster]
    assert asked
    for query in asked:
        for read in reads(_plain(query)):
            assert read.labels <= known[read.name], query
            assert read.name.startswith("cnpg_") or allowed.fullmatch(read.name)


@pytest.fixture
def discord() -> Any:
    with FakeDiscord() as running:
        yield running


@pytest.fixture
def stripe() -> Any:
    with FakeStripe(int(time.time())) as fake:
        fake.feature(fake.price(2900, price_id="price_pro")["product"], "pro")
        yield fake


@pytest.fixture
async def whole(
    settings: SharedSettings, clean_kafka: RunningKafka, discord: FakeDiscord, stripe: FakeStripe, tmp_path: Path
) -> AsyncGenerator[ServiceProcess]:
    """All services as one process, with a market that is always open and always has news."""
    del clean_kafka
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {
        "OPENBELL_DATABASE_URL": settings.database_url,
        "OPENBELL_KAFKA_BOOTSTRAP": settings.kafka_bootstrap,
        "OPENBELL_KAFKA_STATIC_MEMBERS": str(settings.kafka_static_members),
        "OPENBELL_KAFKA_SMALL_TOPICS": str(settings.kafka_small_topics),
        "OPENBELL_HTTP_PORT": str(port),
        "OPENBELL_ALERTS_DISCORD_BASE": discord.base,
        "OPENBELL_DATA_SOURCE": "simulator",
        "OPENBELL_DATA_SYMBOLS": "AAPL,IBM",
        "OPENBELL_DATA_SIMULATOR_SESSION_S": "120",
        "OPENBELL_DATA_SIMULATOR_POLL_EVERY_S": "2",
        "OPENBELL_BROKER_QUOTE_AGE_S": "86400",
        "OPENBELL_PAYMENT_STRIPE_KEY": stripe.key,
        "OPENBELL_PAYMENT_STRIPE_BASE": stripe.url,
        "OPENBELL_PAYMENT_STRIPE_WEBHOOK_SECRETS": stripe.webhook_secret,
        "OPENBELL_PAYMENT_PLANS": PLAN,
    }
    process = ServiceProcess(os.environ | env, tmp_path / "services.log", "tests.deploy.whole")
    try:
        await process.start()
        await process.ready()
        yield process
    finally:
        await process.stop()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_panel_is_empty_after_a_run(
    whole: ServiceProcess,
    settings: SharedSettings,
    database_url: str,
    discord: FakeDiscord,
    stripe: FakeStripe,
    tmp_path: Path,
) -> None:
    port = whole.env["OPENBELL_HTTP_PORT"]
    try:
        async with (
            asking(tmp_path, [f"127.0.0.1:{port}"]) as prometheus,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as http,
        ):
            began = time.time()
            await use(http, settings, database_url, discord, stripe)
            left = [(board, panel) for board in BOARDS for panel in board.panels]
            left = [(board, panel) for board, panel in left if not (panel.after_fault or panel.on_cluster)]

            async def nothing_is_empty() -> bool:
                left[:] = [(board, panel) for board, panel in left if await is_empty(prometheus, panel)]
                return not left

            try:
                await eventually(nothing_is_empty, 90)
            except TimeoutError:
                pytest.fail("empty: " + "; ".join(f"{board.title}, {panel.title}" for board, panel in left))
            if pictures := os.environ.get("OPENBELL_DASHBOARD_PICTURES"):
                await eventually(lambda: time.time() > began + 60, 90)  # a picture is of a minute
                Path(pictures).mkdir(exist_ok=True)  # noqa: ASYNC240 - the run is over
                for board in BOARDS:
                    await draw(prometheus, board, began, time.time(), Path(pictures))
    except ToolMissing as missing:
        without(missing)


async def is_empty(prometheus: Prometheus, panel: Panel) -> bool:
    """Whether a query of a panel finds nothing at this moment."""
    return not all([await prometheus.ask(_plain(query)) for query, _ in panel.asks])


async def use(
    http: httpx.AsyncClient, settings: SharedSettings, database_url: str, discord: FakeDiscord, stripe: FakeStripe
) -> None:
    """Do what users, Stripe and an administrator do."""
    gateway = build_api(Environment(settings))
    operator = {"authorization": f"Bearer {await create_admin(gateway, 'ops@example.com')}"}
    await gateway.db.close()
    made = (await http.post("/api/users", json={"email": "trader@example.com"})).json()
    user_id, user = made["user"]["id"], {"authorization": f"Bearer {made['api_key']}"}
    await http.get("/api/nothing")
    onboarding = {"investing_style": "trader", "tickers": ["AAPL", "IBM"]}
    await told(http, "POST", f"/api/user/{user_id}/onboarding", user, onboarding)
    await told(http, "PATCH", f"/api/user/{user_id}/settings", user, {"min_score": 0, "min_premium_usd": "0"})
    hook = discord.webhook()
    await eventually(lambda: _accepted(http, f"/api/alerts/{user_id}/channels/discord", user, {"target": hook}))
    refused = Answer(400, {"message": "Invalid Form Body", "code": 50035})
    discord.answer(hook, Answer(500), refused)  # one message is sent again, one is given up
    address = f"ws://{http.base_url.host}:{http.base_url.port}/realtime"
    async with connect(address, additional_headers=user, proxy=None) as listener:
        await buy(http, database_url, stripe, UUID(user_id))
        await eventually(lambda: _trades(http, user))
        await listener.recv()
    await poison(http, settings, operator)
    for service, job in (("payment", "invariants"), ("payment", "assert-customers")):
        await told(http, "POST", f"/ops/jobs/{service}/{job}/run", operator)
    await eventually(lambda: any(post.status < httpx.codes.BAD_REQUEST for post in discord.posts))


async def poison(http: httpx.AsyncClient, settings: SharedSettings, operator: dict[str, str]) -> None:
    """Put a record into Kafka that nobody can read, and have it tried again once it was given up."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap)
    await producer.start()
    try:
        await producer.send_and_wait(CHAINS.name, b"not a chain", b"BAD")
    finally:
        await producer.stop()
    found: list[dict[str, Any]] = []

    async def parked() -> bool:
        listed = await told(http, "GET", "/ops/failed-jobs", operator)
        found[:] = [job for job in listed["failed_jobs"] if job["consumer"] == "detector.chains"]
        return bool(found)

    await eventually(parked)
    await told(http, "POST", f"/ops/failed-jobs/detector/{found[0]['id']}/retry", operator)


async def buy(http: httpx.AsyncClient, database_url: str, stripe: FakeStripe, user_id: UUID) -> None:
    """Subscribe, and post the webhooks of it."""
    admin = await asyncpg.connect(database_url)

    async def known() -> bool:
        return bool(await admin.fetch("select 1 from payment.customers where user_id = $1", user_id))

    await eventually(known)
    await admin.close()
    life = Life(stripe, user_id, "")
    life.begin()
    life.buy()
    for event in stripe.events:
        body, headers = stripe.signed(event)
        answer = await http.post("/pay/webhooks/stripe", content=body, headers=headers)
        assert answer.status_code == httpx.codes.OK, answer.text


async def told(http: httpx.AsyncClient, method: str, path: str, who: dict[str, str], body: object = None) -> Any:
    """Call, and return the answer; fails unless it is a success."""
    answer = await http.request(method, path, headers=who, json=body)
    assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


async def _accepted(http: httpx.AsyncClient, path: str, who: dict[str, str], body: object) -> bool:
    return (await http.put(path, headers=who, json=body)).is_success


async def _trades(http: httpx.AsyncClient, user: dict[str, str]) -> bool:
    """Buy ten shares once there is an account and a quote; whether one order was filled."""
    accounts: Sequence[dict[str, Any]] = await told(http, "GET", "/broker/accounts", user)
    if not accounts:
        return False
    account_id = accounts[0]["id"]
    terms = {"legs": [{"symbol": "AAPL", "side": "buy"}], "type": "market", "quantity": "10"}
    order = await told(http, "POST", "/broker/orders", user, {"account_id": account_id, "terms": terms})
    over = {"filled", "rejected", "canceled", "expired"}
    seen: dict[str, Any] = {}

    async def ended() -> bool:
        answer = await http.get(f"/broker/orders/{order['order_id']}", headers=user)
        seen.update(answer.json() if answer.is_success else {})  # the command may be on its way
        return seen.get("state") in over

    await eventually(ended)
    return seen["state"] == "filled"


def _plain(query: str) -> str:
    """Put a time where Grafana puts one."""
    return query.replace("$__rate_interval", "2m")
