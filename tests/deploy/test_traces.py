"""One trace leads from a snapshot, or from a request, through Kafka to what a person gets; logs name it."""

import json
import logging
import os
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, time, timedelta
from typing import Any, cast

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from deploy.local.kafka import RunningKafka
from services.alerts.main import build as build_alerts
from services.api.main import build as build_api
from services.data.main import build as build_data
from services.detector.main import build as build_detector
from shared import telemetry
from shared.clock import utc_now
from shared.logs import JsonFormatter
from shared.service import Environment, Service
from shared.settings import SharedSettings
from tests.conftest import ManualClock, eventually
from tests.fakes.discord import FakeDiscord


class Kept(logging.Handler):
    """Log lines, as they would be written."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[dict[str, Any]] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """What is exported in this process; a provider can be set once in its life."""
    kept = InMemorySpanExporter()
    telemetry.export(SimpleSpanProcessor(kept), "test", 1.0)
    yield kept
    telemetry.enable(on=False)


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


@pytest.fixture
def discord(monkeypatch: pytest.MonkeyPatch) -> Generator[FakeDiscord]:
    with FakeDiscord() as running:
        monkeypatch.setenv("OPENBELL_ALERTS_DISCORD_BASE", running.base)
        yield running


@pytest.fixture
async def gateway(
    settings: SharedSettings, clean_kafka: RunningKafka, discord: FakeDiscord
) -> AsyncGenerator[httpx.AsyncClient]:
    """The gateway, the detector and alerts, in this process."""
    del clean_kafka, discord
    env = Environment(settings)
    api, others = build_api(env), (build_detector(env), build_alerts(env))
    for service in others:
        api.neighbours[service.name] = service.app
    async with AsyncExitStack() as running:
        for service in (api, *others):
            await running.enter_async_context(service.running())
            await eventually(lambda service=service: _ready(service))
        transport = httpx.ASGITransport(app=cast("Any", api.app))
        yield await running.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://gateway"))


async def _ready(service: Service) -> bool:
    return all(ok for ok, _ in (await service.readiness()).values())


async def sign_up(http: httpx.AsyncClient) -> tuple[str, dict[str, str]]:
    made = (await http.post("/api/users", json={"email": "trader@example.com"})).json()
    return made["user"]["id"], {"authorization": f"Bearer {made['api_key']}"}


def traces(spans: InMemorySpanExporter) -> dict[int, list[ReadableSpan]]:
    """Return the finished spans of each trace."""
    found: dict[int, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(_context(span).trace_id, []).append(span)
    return found


def _context(span: ReadableSpan) -> SpanContext:
    assert span.context is not None
    return span.context


def path_of(span: ReadableSpan, of: list[ReadableSpan]) -> list[str]:
    """Return the names from the root to a span."""
    by_id = {_context(one).span_id: one for one in of}
    names: list[str] = []
    at: ReadableSpan | None = span
    while at is not None:
        names.append(at.name)
        at = by_id.get(at.parent.span_id) if at.parent is not None else None
    return names[::-1]


@pytest.mark.timeout(600)
async def test_a_snapshot_and_the_message_that_it_causes_are_one_trace(
    gateway: httpx.AsyncClient,
    settings: SharedSettings,
    discord: FakeDiscord,
    spans: InMemorySpanExporter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user_id, auth = await sign_up(gateway)
    onboarding = {"investing_style": "trader", "tickers": ["AAPL"]}
    await gateway.post(f"/api/user/{user_id}/onboarding", json=onboarding, headers=auth)
    await gateway.patch(f"/api/user/{user_id}/settings", json={"min_score": 0, "min_premium_usd": "0"}, headers=auth)

    async def added() -> bool:
        path = f"/api/alerts/{user_id}/channels/discord"
        return (await gateway.put(path, json={"target": discord.webhook()}, headers=auth)).is_success

    await eventually(added)
    monkeypatch.setenv("OPENBELL_DATA_SOURCE", "simulator")
    monkeypatch.setenv("OPENBELL_DATA_SYMBOLS", "AAPL")
    late = ManualClock(datetime.combine(utc_now().date(), time.min, UTC) - timedelta(hours=1))
    async with build_data(Environment(settings, late)).running():
        await eventually(lambda: len(discord.posts) >= 1)
    told: list[str] = []

    def whole() -> bool:
        for some in traces(spans).values():
            for span in some:
                if span.name == "call discord":
                    told[:] = path_of(span, some)
        return told[:1] == ["door"] and told[-2:] == ["work.discord", "call discord"]

    await eventually(whole)
    assert told == ["door", "process detector.chains", "process alerts.activity", "work.discord", "call discord"]


async def test_a_request_and_what_others_make_of_it_are_one_trace_that_logs_name(
    gateway: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    trace_id, parent = os.urandom(16).hex(), os.urandom(8).hex()
    kept = Kept()
    logging.getLogger().addHandler(kept)
    try:
        answer = await gateway.post(
            "/api/users",
            json={"email": "other@example.com"},
            headers={"traceparent": f"00-{trace_id}-{parent}-01"},
        )
        assert answer.status_code == httpx.codes.CREATED
        with telemetry.serving("a request", f"00-{trace_id}-{parent}-01".encode()):
            logging.getLogger("services.api").warning("something_happened")
    finally:
        logging.getLogger().removeHandler(kept)

    def names() -> set[str]:
        return {span.name for span in traces(spans).get(int(trace_id, 16), [])}

    await eventually(lambda: {"POST api", "door", "process alerts.users"} <= names())
    assert trace_id in {line["trace_id"] for line in kept.lines if line["event"] == "something_happened"}
