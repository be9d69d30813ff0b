"""One signal that very many rules look at: page by page, each user once, the newest of what was seen, others first."""

import asyncio
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from services.alerts.service import NewRule, Options
from services.alerts.store.fanouts import FanOutStore
from services.alerts.workers import FanOuts
from shared.db import Tx
from shared.messaging.door import Done
from shared.work import Worker
from tests.alerts.conftest import ACTOR, NOW, WEBHOOK, Bench, activity, contract

USERS = 7


class Fan:
    """A bench whose alerts fan out above three rules, two users a page."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        options = Options(offered=("discord", "email"), best_few=3, fan_out_above=3, fan_out_users=2)
        bench.offer(options, wake=lambda: None)
        self.users: list[UUID] = []

    async def crowd(self, users: int = USERS) -> None:
        for number in range(users):
            self.users.append(await self.bench.user(*(["AAPL"] if number % 3 else [])))
            if not number % 3:
                await self.bench.rule(self.users[-1], NewRule("own", ("AAPL", "MSFT") if number else (), 1, Decimal(0)))
            await self.bench.channel(self.users[-1], target=f"{WEBHOOK}{number}")

    def worker(self) -> Worker:
        work = FanOuts(self.bench.alerts, FanOutStore(), self.bench.door).work()
        return Worker(work, self.bench.door, self.bench.clock, draw=lambda: 0.5)

    async def page(self, number: int = 0) -> bool:
        """Do one page of the oldest fan-out, as a worker does that dies then."""
        row = (await self.open())[number]
        return await self.bench.door.run(lambda tx: self.bench.alerts.raise_page(row, tx))

    async def open(self) -> list[Any]:
        rows = [row for row in await self.bench.rows("fan_outs") if row["settled_at"] is None]
        return sorted(rows, key=lambda row: (row["created_at"], row["id"]))

    async def finish(self) -> None:
        """Let a worker do what is left, after the leases of those that died."""
        worker = self.worker()
        while await self.open():
            self.bench.clock.advance(31)
            await worker.turn()
            await worker.idle()

    async def told(self) -> Counter[str]:
        rows = await self.bench.rows("outbox")
        return Counter(row["key"].decode() for row in rows if row["topic"] == "alerts.alerts")

    async def once_each(self) -> None:
        alerts, deliveries = await self.bench.rows("alerts"), await self.bench.rows("deliveries")
        for rows in (alerts, deliveries):
            assert Counter(row["user_id"] for row in rows) == Counter(dict.fromkeys(self.users, 1))
        assert await self.told() == Counter(str(user) for user in self.users)
        assert {row["bulk"] for row in deliveries} == {True}


async def dying(bench: Bench, row: Any, tx: Tx) -> Done[bool]:
    assert (await bench.alerts.raise_page(row, tx)).value
    raise RuntimeError("died")


@pytest.fixture
def fan(bench: Bench) -> Fan:
    return Fan(bench)


async def test_what_few_rules_look_at_is_raised_at_once_and_the_rest_by_a_worker(fan: Fan) -> None:
    await fan.crowd(3)
    assert len(await fan.bench.tell(activity())) == 3
    await fan.crowd(4)
    assert not await fan.bench.tell(activity(contract("B", 99)))
    assert {row["symbol"] for row in await fan.open()} == {"AAPL"}
    await fan.finish()
    found = {row["user_id"]: row["top_score"] for row in await fan.bench.rows("alerts")}
    assert found == dict.fromkeys(fan.users, 99)


async def test_each_user_is_told_once_whatever_page_the_worker_dies_after(fan: Fan) -> None:
    await fan.crowd()
    await fan.bench.tell(activity())
    await fan.bench.execute("update fan_outs set status = 'started', token = id, lease_until = due_at")
    for pages in range(1, USERS // 2 + 1):
        assert await fan.page()
        assert len(await fan.bench.rows("alerts")) == 2 * pages
    await fan.finish()
    await fan.once_each()


async def test_a_page_that_was_not_committed_is_done_again(fan: Fan) -> None:
    await fan.crowd()
    await fan.bench.tell(activity())
    (row,) = await fan.open()
    with pytest.raises(RuntimeError, match="died"):
        await fan.bench.door.run(lambda tx: dying(fan.bench, row, tx))
    assert await fan.bench.rows("alerts") == []
    await fan.finish()
    await fan.once_each()


async def test_a_worker_that_was_taken_for_dead_and_its_successor_tell_each_user_once(fan: Fan) -> None:
    await fan.crowd()
    await fan.bench.tell(activity())
    (row,) = await fan.open()
    both = [FanOuts(fan.bench.alerts, FanOutStore(), fan.bench.door).perform(row) for _ in range(2)]
    await asyncio.gather(*both)
    await fan.finish()
    await fan.once_each()


async def test_a_newer_event_in_the_middle_reaches_everybody_and_rings_again_only_by_the_step(fan: Fan) -> None:
    await fan.crowd()
    await fan.bench.tell(activity(contract("A", 70)))
    await fan.page()
    early = {row["user_id"] for row in await fan.bench.rows("alerts")}
    fan.bench.clock.advance(1)
    later = NOW + timedelta(minutes=1)
    await fan.bench.tell(activity(contract("A", 85), contract("B", 65), as_of=later))
    await fan.page()
    assert {row["top_score"] for row in await fan.bench.rows("alerts")} == {70, 85}
    assert len(await fan.open()) == 2
    await fan.finish()
    rows = await fan.bench.rows("alerts")
    assert len(rows) == USERS
    assert {(row["top_score"], row["contract_count"], row["as_of"]) for row in rows} == {(85, 2, later)}
    rings = {row["user_id"]: row["notifications"] for row in rows}
    assert rings == {user: 2 if user in early else 1 for user in fan.users}
    assert await fan.told() == Counter({str(user): rings[user] for user in fan.users})
    assert len(await fan.bench.rows("deliveries")) == USERS + len(early)
    fan.bench.clock.advance(1)
    await fan.bench.tell(activity(contract("A", 94), as_of=later + timedelta(minutes=1)))
    await fan.finish()
    assert {row["user_id"]: row["notifications"] for row in await fan.bench.rows("alerts")} == rings
    assert {row["top_score"] for row in await fan.bench.rows("alerts")} == {94}


async def test_of_fan_outs_that_wait_the_newest_is_done_and_an_event_behind_them_waits_too(fan: Fan) -> None:
    await fan.crowd()
    for score in (70, 75, 79):
        await fan.bench.tell(activity(contract("A", score), as_of=NOW + timedelta(seconds=score)))
        fan.bench.clock.advance(1)
    for user in fan.users[1:]:
        await fan.bench.execute(f"delete from watched where user_id = '{user}'")
    assert not await fan.bench.tell(activity(contract("A", 80)))
    assert len(await fan.open()) == 4
    await fan.finish()
    assert {(row["top_score"], row["notifications"]) for row in await fan.bench.rows("alerts")} == {(80, 1)}
    assert set((await fan.told()).values()) == {1}


async def test_what_few_look_at_is_delivered_before_what_many_do(fan: Fan) -> None:
    await fan.crowd(12)
    await fan.bench.tell(activity())
    await fan.finish()
    alone = await fan.bench.user("TSLA")
    await fan.bench.channel(alone, target=f"{WEBHOOK}alone")
    fan.bench.clock.advance(1)
    await fan.bench.tell(activity(symbol="TSLA"))
    for _ in range(13):  # of a fan-out's, few at once
        await fan.bench.deliver()
    assert len(fan.bench.discord.sent) == len(await fan.bench.rows("deliveries")) == 14
    assert f"{WEBHOOK}alone" in {message.target for message in fan.bench.discord.sent[:8]}  # eight at once


async def test_rules_that_change_are_found_by_the_symbols_they_name_now(fan: Fan) -> None:
    user = await fan.bench.user()
    rule = await fan.bench.rule(user, NewRule("r", ("AAPL",), 1, Decimal(0)))
    changes = {"symbols": ("MSFT",)}
    await fan.bench.door.run(lambda tx: fan.bench.rules.change(ACTOR, user, rule["rule_id"], changes, tx))
    assert not await fan.bench.tell(activity())
    assert len(await fan.bench.tell(activity(symbol="MSFT"))) == 1
    await fan.bench.door.run(lambda tx: fan.bench.rules.remove(ACTOR, user, rule["rule_id"], tx))
    assert await fan.bench.rows("rule_symbols") == []
