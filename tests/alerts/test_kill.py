"""SIGKILL of the alerts service at any point: one message a channel, none lost, and what may be doubled is counted.

OPENBELL_ALERTS_KILLS says how often it is killed. The stated policy for an outcome that nobody knows is to send again:
only what a kill found between its start and its record may come twice, marked on Discord, under one Message-ID by mail
and one `webhook-id`, each time signed.
"""

import asyncio
import contextlib
import os
import socket
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import httpx
import pytest

from deploy.local.kafka import RunningKafka
from services.alerts.adapters.webhook import signature
from services.alerts.domain.text import REPEAT_NOTE
from shared.clock import utc_now
from shared.contracts.topics import TOPICS
from shared.identity import Signer, identity_secret
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.settings import SharedSettings
from tests.alerts.killing import (
    SlowDiscord,
    SlowReceiver,
    SlowSmtp,
    Stage,
    environment_of,
    nursery,
    subjects_of,
    words_of,
)
from tests.conftest import eventually

KILLS = int(os.environ.get("OPENBELL_ALERTS_KILLS", "4"))
PEOPLE = 3
MOST_S = 0.05
PREFERENCES: dict[str, dict[str, Any]] = {
    "grouped": {"groupings": [{"kind": "*", "by": "kind", "wait_s": 1, "interval_s": 10}]},
    "in turns": {"turns": ["discord", "email"]},
}
"""Of all users; else each message comes on each channel. In turns Discord refuses half of what it gets."""


@pytest.fixture
async def stage(
    settings: SharedSettings, database_url: str, address: KafkaAddress, clean_kafka: RunningKafka, tmp_path: Path
) -> AsyncGenerator[Stage]:
    del clean_kafka
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    await ensure_topics(address, TOPICS)
    async with contextlib.AsyncExitStack() as stack:
        discord = stack.enter_context(SlowDiscord(Random(1), MOST_S))
        smtp = stack.enter_context(SlowSmtp(Random(2), MOST_S))
        receiver = stack.enter_context(SlowReceiver(Random(3), MOST_S))
        env = environment_of(settings, address, port, discord, smtp, receiver)
        lives = await stack.enter_async_context(nursery(env, tmp_path / "alerts.log"))
        admin = await asyncpg.connect(database_url)
        stack.push_async_callback(admin.close)
        http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60)
        await stack.enter_async_context(http)
        writer = address.writer("test")
        await writer.start()
        stack.push_async_callback(writer.stop)
        signer = Signer(identity_secret(settings), utc_now)
        yield Stage(lives, admin, http, signer, writer, discord, smtp, receiver)


async def ready(stage: Stage) -> bool:
    try:
        return (await stage.http.get("/readyz")).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.apache  # each life is a member that has to be noticed dead
@pytest.mark.slow
@pytest.mark.timeout(900 + 60 * KILLS)
@pytest.mark.parametrize("way", ["each", "grouped", "in turns"])
async def test_one_message_a_channel_through_kills_at_any_point(
    stage: Stage, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    await stage.lives.begin()
    await eventually(lambda: ready(stage), 120)
    for _ in range(PEOPLE):
        await stage.join(PREFERENCES.get(way))
    await stage.lives.kill()
    stage.discord.picky = way == "in turns"
    stop, chance = asyncio.Event(), Random(KILLS)
    streaming = asyncio.create_task(stage.stream(stop))
    for _ in range(KILLS):
        await stage.live_and_die(chance)
        assert stage.doubled().keys() <= stage.unknown.keys(), "what nobody doubted came twice"
    stop.set()
    await streaming
    await stage.lives.begin()
    await eventually(stage.settled, 300)
    await stage.lives.kill()

    arrived, doubled = stage.arrived(), stage.doubled()
    assert arrived.keys() == set(stage.told)
    assert {one: times for one, times in doubled.items() if times > 1 + stage.unknown[one]} == {}
    assert_repetitions_say_so(stage, doubled)
    by_channel = Counter(channel for _, channel, _ in stage.told)
    with capsys.disabled():
        sys.stdout.write(
            f"\n{stage.kills} kills, {len(stage.told)} messages told ({dict(by_channel)}): none lost; "
            f"{sum(stage.unknown.values())} outcomes unknown at a kill, {len(doubled)} of them came twice\n"
        )


def assert_repetitions_say_so(stage: Stage, doubled: Counter[tuple[str, str, str]]) -> None:
    """On Discord all but the first say that they may repeat; what is of one delivery has one id elsewhere."""
    webhook_ids = signed_ids(stage)
    hooks = {str(who.id): who.webhook for who in stage.people}
    mails = {str(who.id): who.email for who in stage.people}
    ids: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for mail in stage.smtp.mails:
        for subject in subjects_of(words_of(mail)):
            ids[mail.recipients[0], subject].add(str(mail.message["Message-ID"]))
    for user, channel, subject in doubled:
        if channel == "email":
            assert len(ids[mails[user], subject]) == 1
            continue
        if channel == "webhook":
            assert len(webhook_ids[user, subject]) == 1
            continue
        posts = [str(post.payload) for post in stage.discord.posts if post.url == hooks[user]]
        said = [REPEAT_NOTE in post for post in posts if subject in post]
        assert all(said[1:])  # the first says so too when what went before it never arrived


def signed_ids(stage: Stage) -> dict[tuple[str, str], set[str]]:
    """Return the `webhook-id`s of each user's subjects; every request is signed with its user's secret."""
    people = {who.path: who for who in stage.people}
    ids: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for request in stage.receiver.requests:
        who, headers = people[request.path], request.headers
        right = signature(who.secret, headers["webhook-id"], headers["webhook-timestamp"], request.body)
        assert headers["webhook-signature"] == f"v1,{right}"
        for subject in subjects_of(request.body.decode()):
            ids[str(who.id), subject].add(headers["webhook-id"])
    return ids
