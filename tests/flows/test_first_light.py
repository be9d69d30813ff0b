"""The main path, whole: a chain, recorded or simulated, goes in, one alert comes out, whatever is killed on the way."""

import asyncio
import json
from collections.abc import AsyncGenerator, Generator
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiokafka import AIOKafkaConsumer

from deploy.local.kafka import RunningKafka
from services.data.main import build as build_data
from shared.clock import Clock, utc_now
from shared.contracts.data import ChainCollected
from shared.contracts.topics import CHAINS
from shared.service import Environment
from shared.settings import SharedSettings
from tests.conftest import ManualClock, eventually, recorded
from tests.fakes.discord import Answer, FakeDiscord
from tests.fakes.smtp import FakeSmtp, Mail
from tests.flows.stack import Flow, flowing, partitions

GATE = 77  # an advisory lock that the test holds while a delivery must not go on
AAPL = ("data", "cboe", "aapl_chain_2026-07-24.json")


@pytest.fixture
def discord() -> Generator[FakeDiscord]:
    with FakeDiscord() as running:
        yield running


@pytest.fixture
def smtp() -> Generator[FakeSmtp]:
    with FakeSmtp() as running:
        yield running


@pytest.fixture
async def flow(
    settings: SharedSettings,
    database_url: str,
    clean_kafka: RunningKafka,
    discord: FakeDiscord,
    smtp: FakeSmtp,
    tmp_path: Path,
) -> AsyncGenerator[Flow]:
    env = {
        "OPENBELL_ALERTS_DISCORD_BASE": discord.base,
        "OPENBELL_ALERTS_SMTP_HOST": smtp.host,
        "OPENBELL_ALERTS_SMTP_PORT": str(smtp.port),
        "OPENBELL_ALERTS_SMTP_STARTTLS": "false",
    }
    async with flowing(settings, database_url, tmp_path, env) as running:
        await running.sign_up()
        yield running


async def hold_deliveries_before(flow: Flow, status: str) -> None:
    """Make Postgres hold every delivery on its way into `status` until the gate opens."""
    await flow.admin.execute(f"select pg_advisory_lock({GATE})")
    await flow.admin.execute(
        f"""
        create function alerts.hold() returns trigger language plpgsql as $$
        begin perform pg_advisory_xact_lock_shared({GATE}); return new; end $$;
        create trigger hold before update on alerts.deliveries
            for each row when (new.status = '{status}') execute function alerts.hold();
        """
    )


async def open_gate(flow: Flow) -> None:
    await flow.admin.execute(f"select pg_advisory_unlock({GATE})")
    await flow.admin.execute("drop trigger hold on alerts.deliveries")


async def time_out_leases(flow: Flow) -> None:
    """The time that a dead worker's lease takes, without waiting for it."""
    await flow.admin.execute("update alerts.deliveries set lease_until = now() - interval '1 second'")


async def deliveries(flow: Flow) -> dict[str, str]:
    return {row["channel"]: row["status"] for row in await flow.rows("select channel, status from alerts.deliveries")}


async def bring(flow: Flow, source: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """Run the data service for one chain of AAPL, and end it when the chain is in Kafka; return what it serves.

    "replay" plays the recorded answer, "simulator" shows the simulated market near the end of yesterday's session.
    """
    clock: Clock = utc_now
    if source == "replay":
        await asyncio.to_thread(folder.mkdir)
        await asyncio.to_thread((folder / "aapl_chain.json").symlink_to, recorded(*AAPL))
        monkeypatch.setenv("OPENBELL_DATA_REPLAY_DIR", str(folder))
    else:
        clock = ManualClock(datetime.combine(utc_now().date(), time.min, UTC) - timedelta(hours=1))
        monkeypatch.setenv("OPENBELL_DATA_SOURCE", source)
        monkeypatch.setenv("OPENBELL_DATA_SYMBOLS", "AAPL")
    async with build_data(Environment(flow.settings, clock)).running():
        await eventually(lambda: _end_of(flow, CHAINS.name), 60)
    serving = build_data(Environment(flow.settings))  # on today's clock, or it would not believe the gateway
    flow.gateway.neighbours["data"] = serving.app
    try:
        return await flow.call("GET", "/realtime-options/AAPL")
    finally:
        await serving.db.close()


async def _end_of(flow: Flow, topic: str) -> bool:
    return bool(await _records(flow, topic))


async def _records(flow: Flow, topic: str) -> list[Any]:
    kafka = AIOKafkaConsumer(bootstrap_servers=flow.settings.kafka_bootstrap, auto_offset_reset="earliest")
    await kafka.start()
    try:
        parts = partitions(topic)
        kafka.assign(parts)
        ends = await kafka.end_offsets(parts)
        found: list[Any] = []
        while len(found) < sum(ends.values()):
            for records in (await kafka.getmany(timeout_ms=200)).values():
                found.extend(records)
        return found
    finally:
        await kafka.stop()


@pytest.mark.parametrize("source", ["replay", "simulator"])
async def test_a_chain_becomes_one_alert_though_all_goes_wrong_on_the_way(
    flow: Flow, source: str, discord: FakeDiscord, smtp: FakeSmtp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook = discord.webhook()
    await flow.watch("AAPL")
    await flow.channel("discord", hook)
    await flow.channel("email", "trader@example.com")
    await eventually(lambda: len(smtp.mails) == 1)
    await flow.confirm(_link_in(smtp.mails[0]))
    await flow.knows_rules(symbols=1)
    discord.answer(hook, Answer(503), Answer(429, {"retry_after": 0.4}, {"retry-after": "0.4"}))

    # Alerts is killed between claim and post.
    await hold_deliveries_before(flow, "started")
    served = await bring(flow, source, monkeypatch, tmp_path / "replay")
    await eventually(lambda: _are(flow, {"discord": "claimed", "email": "claimed"}))
    await flow.alerts.kill()
    assert discord.requests == []
    await open_gate(flow)
    await time_out_leases(flow)

    # The snapshot comes a second time, byte for byte, while alerts starts again.
    (chain,) = await _records(flow, CHAINS.name)
    await flow.produce(chain.topic, chain.key, chain.value, list(chain.headers))
    await flow.alerts.start()
    await eventually(lambda: _are(flow, {"discord": "done", "email": "done"}), 60)
    await flow.drained("detector.chains", "data.chains")
    await flow.drained("alerts.activity", "detector.activity")

    # Exactly the contracts that the published rule selects.
    options = _options(source, chain.value)
    expected = sorted(one["contract"] for one in options if _unusual(one))
    activity = await flow.rows("select contract from detector.activity")
    assert expected
    assert sorted(row["contract"] for row in activity) == expected
    assert served["source"] == source
    assert served["simulated"] is (source == "simulator")
    assert served["count"] == len(options)

    # One grouped alert in the app, one Discord post after a 503 and a 429, one mail.
    alerts = (await flow.call("GET", f"/api/alerts/{flow.user_id}"))["alerts"]
    assert [(one["symbol"], one["contract_count"]) for one in alerts] == [("AAPL", len(expected))]
    assert [request.status for request in discord.requests] == [503, 429, 200]
    waited = discord.requests[2].at - discord.requests[1].at
    assert waited >= 0.4, "Retry-After is obeyed"
    assert len(discord.posts) == 1
    assert "AAPL" in discord.posts[0].payload["content"]
    assert (r"\[SIMULATED\]" in discord.posts[0].payload["content"]) is (source == "simulator")  # as Markdown has it
    assert len(smtp.mails[1:]) == 1
    assert "AAPL" in smtp.mails[1].message["Subject"]
    assert await flow.rows("select 1 from alerts.deliveries where uncertain") == []
    board = await flow.call("GET", "/leaderboard")
    assert {entry["symbol"] for entry in board["entries"]} <= {"AAPL"}


async def test_a_post_whose_record_was_lost_is_unknown_and_sent_again_with_a_note(
    flow: Flow, discord: FakeDiscord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hook = discord.webhook()
    await flow.watch("AAPL")
    await flow.channel("discord", hook)
    await flow.knows_rules(symbols=1)
    await hold_deliveries_before(flow, "done")
    await bring(flow, "simulator", monkeypatch, tmp_path)
    await eventually(lambda: len(discord.posts) == 1, 60)
    await flow.alerts.kill()
    assert await deliveries(flow) == {"discord": "started"}
    await open_gate(flow)
    await time_out_leases(flow)
    await flow.alerts.start()
    await eventually(lambda: _are(flow, {"discord": "done"}), 60)
    assert len(discord.posts) == 2
    first, second = (str(post.payload) for post in discord.posts)
    assert "repeat" in second
    assert "repeat" not in first


async def test_bad_chains_lie_in_failed_jobs_and_the_good_one_goes_through(
    flow: Flow, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await flow.watch("AAPL")
    await flow.knows_rules(symbols=1)
    await bring(flow, "simulator", monkeypatch, tmp_path)
    (chain,) = await _records(flow, CHAINS.name)
    headers = dict(chain.headers)
    good = ChainCollected.from_bytes(chain.value, id=UUID(int=9), time=datetime.now(UTC))
    table_lacks = good.model_copy(update={"contracts": good.contracts.drop_columns(["open_interest"])})
    odd = good.model_copy(update={"header": good.header.model_copy(update={"symbol": "../etc/passwd"})})
    bad: list[tuple[bytes | None, dict[str, bytes], str]] = [
        (b"\xff\x00 not arrow", {"ce_id": str(UUID(int=3)).encode()}, "UNDECODABLE"),
        (table_lacks.to_bytes(), {"ce_id": str(UUID(int=1)).encode()}, "UNDECODABLE"),
        (odd.to_bytes(), {"ce_id": str(UUID(int=2)).encode()}, "VALIDATION_ERROR"),
        (chain.value, {"ce_id": str(UUID(int=4)).encode(), "ce_type": b"data.chain.collected.v7"}, "UNKNOWN_VERSION"),
        (chain.value, {"ce_id": b"\xfe\xff"}, "BAD_ENVELOPE"),
    ]
    for number, (value, changes, _) in enumerate(bad):
        await flow.produce(chain.topic, f"BAD{number}".encode(), value, list((headers | changes).items()))
    await flow.drained("detector.chains", "data.chains")
    listed = await flow.call("GET", "/ops/failed-jobs", headers=flow.operator)
    jobs = [job for job in listed["failed_jobs"] if job["consumer"] == "detector.chains"]
    assert sorted(job["error_code"] for job in jobs) == sorted(code for *_, code in bad)
    assert all(job["error_message"] for job in jobs)
    lacks = next(job for job in jobs if "open_interest" in job["error_message"])
    shown = await flow.call("GET", f"/ops/failed-jobs/detector/{lacks['id']}", headers=flow.operator)
    assert shown["value_bytes"] == len(table_lacks.to_bytes())
    await flow.call("GET", "/ops/failed-jobs", expect=403)
    reason = {"reason": "test data"}
    path = f"/ops/failed-jobs/detector/{lacks['id']}/discard"
    discarded = await flow.call("POST", path, json=reason, headers=flow.operator)
    assert discarded["status"] == "discarded"
    activity = await flow.rows("select count(*) as n from detector.activity")
    assert activity[0]["n"] > 0


async def _are(flow: Flow, expected: dict[str, str]) -> bool:
    return await deliveries(flow) == expected


def _link_in(mail: Mail) -> str:
    plain = mail.message.get_body(("plain",))
    assert plain is not None
    return next(line for line in plain.get_content().splitlines() if line.startswith("http"))


def _options(source: str, chain: bytes) -> list[dict[str, Any]]:
    """The contracts that went in: of the recorded answer itself, else of the simulator's chain."""
    if source == "simulator":
        return ChainCollected.from_bytes(chain, id=UUID(int=0), time=utc_now()).contracts.to_pylist()
    options = json.loads(recorded(*AAPL).read_text())["data"]["options"]
    return [{**one, "contract": one["option"], "last": one["last_trade_price"]} for one in options]


def _unusual(option: dict[str, Any]) -> bool:
    """Barchart's published rule."""
    volume, interest = option["volume"], option["open_interest"]
    return volume > 500 and interest > 100 and option["last"] > 0.10 and volume / interest >= 1.25
