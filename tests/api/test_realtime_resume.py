"""Resuming: nothing is missed and nothing comes twice, however often sockets and replicas come and go."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest

from deploy.local.kafka import RunningKafka
from services.api.main import Gateway, build
from services.api.service import By, Keys, Users
from services.api.store import feed
from shared.clock import new_id, utc_now
from shared.contracts.alerts import AlertRaised, DeliverySettled, NoticeRaised
from shared.contracts.topics import TOPICS
from shared.messaging.kafka import KafkaAddress, ensure_topics
from shared.messaging.record import headers_of
from shared.service import Environment
from shared.settings import SharedSettings
from tests.api.conftest import KEY_SECRET, Person, rows
from tests.api.sockets import following, http, notice, receive, serving, tell, titles
from tests.conftest import ManualClock, eventually
from tests.contracts.examples import EXAMPLES

PAGE = Path(__file__).parents[2] / "docs/realtime.md"


@pytest.fixture
async def replicas(make_gateway: Callable[..., Gateway]) -> AsyncGenerator[tuple[Gateway, list[str]]]:
    """Two replicas on one database."""
    one, other = make_gateway(), make_gateway()
    async with serving(one) as (_, first), serving(other) as (_, second):
        yield one, [first, second]


async def test_who_was_away_is_told_what_they_missed_and_then_what_comes(
    replicas: tuple[Gateway, list[str]], ada: Person, clock: ManualClock
):
    gateway, (first, second) = replicas
    async with following(first, ada) as (socket, _):
        await tell(gateway, *(notice(ada.id, str(number), at=clock()) for number in range(3)))
        cursor = [(await receive(socket))["cursor"] for _ in range(2)][-1]
    await tell(gateway, *(notice(ada.id, str(number), at=clock()) for number in range(3, 130)))
    async with following(second, ada, since=cursor) as (socket, hello):
        assert hello == {"type": "hello", "cursor": "2", "gap": False}
        missed = [await receive(socket) for _ in range(128)]
        await tell(gateway, notice(ada.id, "live", at=clock()))
        assert titles([*missed, await receive(socket)]) == [*(str(number) for number in range(2, 130)), "live"]
    async with following(second, ada) as (_, hello):
        assert hello == {"type": "hello", "cursor": "131", "gap": False}


async def test_what_is_kept_no_more_is_a_gap_that_is_told(
    replicas: tuple[Gateway, list[str]], ada: Person, bob: Person, clock: ManualClock
):
    gateway, (url, _) = replicas
    await tell(gateway, *(notice(ada.id, f"old {number}", at=clock()) for number in range(3)))
    clock.advance(25 * 3600)
    await tell(gateway, notice(ada.id, "new", at=clock()))
    await feed.forget(gateway.door.transaction, clock() - timedelta(hours=24), clock())
    for since, gap in (("0", True), ("2", True), ("3", False)):
        async with following(url, ada, since=since) as (socket, hello):
            assert hello == {"type": "hello", "cursor": "3", "gap": gap}
            assert titles([await receive(socket)]) == ["new"]
    async with following(url, ada, since="4") as (_, hello):
        assert hello == {"type": "hello", "cursor": "4", "gap": False}
    async with following(url, ada, since="99") as (_, hello):
        assert hello == {"type": "hello", "cursor": "4", "gap": True}
    await feed.forget(gateway.door.transaction, clock() + timedelta(hours=24), clock())
    async with following(url, ada, since="3") as (_, hello):
        assert hello == {"type": "hello", "cursor": "4", "gap": True}
    async with following(url, bob, since="0") as (_, hello):
        assert hello == {"type": "hello", "cursor": "0", "gap": False}


async def test_positions_have_no_holes_and_are_never_seen_out_of_order_whoever_writes(
    make_gateway: Callable[..., Gateway], ada: Person, bob: Person, clock: ManualClock
):
    gateway, seen = make_gateway(), list[int]()
    writing = [
        asyncio.create_task(tell(gateway, *(notice(who.id, at=clock()) for who in (ada, bob, ada)))) for _ in range(40)
    ]
    while True:
        over = all(task.done() for task in writing)
        async with gateway.door.read() as tx:
            found = await feed.after(tx, [(ada.id, seen[-1] if seen else 0)], 1000)
        seen += [row["position"] for row in found]
        if over:
            break
    await asyncio.gather(*writing)
    assert seen == [*range(1, 81)]


async def test_a_storm_of_reconnections_over_two_replicas_misses_nothing_and_doubles_nothing(
    replicas: tuple[Gateway, list[str]],
    join: Callable[..., Awaitable[Person]],
    clock: ManualClock,
):
    gateway, urls = replicas
    people = [await join(f"user{number}@example.com") for number in range(8)]
    told = 60

    async def writes(who: Person) -> None:
        for number in range(told):
            await tell(gateway, notice(who.id, str(number), at=clock()))

    async def follows(who: Person, chance: Random) -> list[str]:
        found, cursor = list[dict[str, Any]](), "0"
        while len(found) < told:
            async with following(chance.choice(urls), who, since=cursor) as (socket, hello):
                assert hello["gap"] is False
                for _ in range(chance.randint(0, 9)):
                    if len(found) < told:
                        found.append(await receive(socket))
                        cursor = found[-1]["cursor"]
        return titles(found)

    async with asyncio.timeout(300), asyncio.TaskGroup() as group:
        for who in people:
            group.create_task(writes(who))
        found = [group.create_task(follows(who, Random(seed))) for seed, who in enumerate([*people, *people])]
    for one in [task.result() for task in found]:
        assert one == [str(number) for number in range(told)]


async def test_a_replica_whose_listening_connection_is_lost_tells_what_it_did_not_hear_of(
    gateway: Gateway, ada: Person, clock: ManualClock, database_url: str
):
    admin = await asyncpg.connect(database_url)
    async with serving(gateway) as (_, url), following(url, ada) as (socket, _):
        killed = await admin.fetch(
            """select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and application_name = 'openbell-api' and pid in (
                select pid from pg_stat_activity where query like '%live%' or query ilike 'listen%'
                    or query like '%api_keys where id = any%')"""
        )
        assert killed
        await tell(gateway, notice(ada.id, "unheard", at=clock()))
        assert titles([await receive(socket)]) == ["unheard"]
        await eventually(lambda: gateway.realtime.health()[0])
    await admin.close()


async def test_the_example_of_the_documentation_follows_and_resumes(
    gateway: Gateway, make_gateway: Callable[..., Gateway], ada: Person, clock: ManualClock
):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102 - what readers will copy
    names["random"].uniform = lambda *_: 0.05  # its pause
    async with serving(gateway) as (_, url):
        messages = names["follow"](f"{url}/realtime", ada.key)
        assert (await anext(messages))["type"] == "hello"
        await tell(gateway, notice(ada.id, "first", at=clock()))
        assert (await anext(messages))["data"]["title"] == "first"
    await tell(gateway, notice(ada.id, "while it was away", at=clock()))
    await messages.aclose()
    async with serving(make_gateway()) as (_, url):
        messages = names["follow"](f"{url}/realtime", ada.key, "1")
        assert (await anext(messages))["type"] == "hello"
        assert (await anext(messages))["data"]["title"] == "while it was away"
        await messages.aclose()


async def test_events_of_alerts_reach_sockets_on_every_replica_once(
    settings: SharedSettings, address: KafkaAddress, clean_kafka: RunningKafka
):
    del clean_kafka
    one, other = (build(Environment(settings, replica=name)) for name in ("one", "other"))
    await ensure_topics(address, TOPICS)
    keys = Keys(KEY_SECRET, forget=lambda _: None)
    done = await one.door.run(lambda tx: Users(keys).sign_up(tx, By("system", utc_now(), new_id), "a@example.com"))
    who = Person(done.user.id, "a@example.com", keys.show(done.key_id))
    events = [
        type(example).model_validate({**dict(example), "id": new_id(), "time": utc_now(), "user_id": who.id})
        for example in EXAMPLES
        if isinstance(example, (AlertRaised, NoticeRaised, DeliverySettled))
    ]
    async with one.running(), other.running(), http(one) as (_, first), http(other) as (_, second):
        async with following(first, who, since="0") as (here, _), following(second, who, since="0") as (there, _):
            writer = address.writer("test")
            await writer.start()
            for event in (*events, *events):  # Kafka delivers at least once
                headers = [(name.decode(), value) for name, value in headers_of(event, "openbell/alerts")]
                await (await writer.send(event.topic.name, event.to_bytes(), event.key.encode(), headers=headers))
            await writer.stop()
            for socket in (here, there):
                told = [await receive(socket) for _ in events]
                assert {message["id"] for message in told} == {str(event.id) for event in events}
                assert [message["cursor"] for message in told] == ["1", "2", "3"]
        kept = await rows(one, "select id from feed")
    assert len(kept) == len(events) == 3
