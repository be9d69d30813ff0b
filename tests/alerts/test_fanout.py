"""One signal that very many rules look at: page by page, each user once, the newest of what was seen, others first.

Where pages are counted a fan-out has one part.
"""

import asyncio
import re
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest

from services.alerts.main import build
from services.alerts.service import NewRule, Options
from services.alerts.store.audience import RULES_FOR
from services.alerts.store.fanouts import FanOutStore
from services.alerts.workers import FanOuts
from shared.db import Tx
from shared.messaging.door import Done
from shared.process import Environment
from shared.settings import SharedSettings
from shared.work import Precedence, Worker
from tests.alerts.conftest import ACTOR, NOW, WEBHOOK, Bench, activity, contract

USERS = 7


class Fan:
    """A bench whose alerts fan out above three rules, two users a page."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.first = Precedence(10)
        self.wakes = 0
        self.parts(1)
        self.users: list[UUID] = []

    def parts(self, parts: int) -> None:
        """Let fan-outs that come have so many parts."""
        options = Options(
            offered=("discord", "email"), best_few=3, fan_out_above=3, fan_out_users=2, fan_out_parts=parts
        )
        self.bench.offer(options, wake=self.wake)

    def wake(self) -> None:
        self.wakes += 1

    def fan_outs(self) -> FanOuts:
        return FanOuts(self.bench.alerts, FanOutStore(), self.bench.door, first=self.first, wake=self.wake)

    async def crowd(self, users: int = USERS) -> None:
        for number in range(users):
            self.users.append(await self.bench.user(*(["AAPL"] if number % 3 else [])))
            if not number % 3:
                await self.bench.rule(self.users[-1], NewRule("own", ("AAPL", "MSFT") if number else (), 1, Decimal(0)))
            await self.bench.channel(self.users[-1], target=f"{WEBHOOK}{number}")

    def worker(self) -> Worker:
        return Worker(self.fan_outs().work(), self.bench.door, self.bench.clock, draw=lambda: 0.5)

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
    await asyncio.gather(*(fan.fan_outs().perform(row) for _ in range(2)))
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


@pytest.mark.parametrize("parts", [1, 3])
async def test_of_fan_outs_that_wait_the_newest_is_done_and_an_event_behind_them_waits_too(
    fan: Fan, parts: int
) -> None:
    fan.parts(parts)
    await fan.crowd()
    for score in (70, 75, 79):
        await fan.bench.tell(activity(contract("A", score), as_of=NOW + timedelta(seconds=score)))
        fan.bench.clock.advance(1)
    for user in fan.users[1:]:
        await fan.bench.execute(f"delete from watched where user_id = '{user}'")
    assert not await fan.bench.tell(activity(contract("A", 80)))
    assert len(await fan.open()) == 4 * parts
    await fan.finish()
    assert {(row["top_score"], row["notifications"]) for row in await fan.bench.rows("alerts")} == {(80, 1)}
    assert set((await fan.told()).values()) == {1}


@pytest.mark.parametrize("parts", [2, 3, 5])
async def test_each_part_looks_at_users_of_its_own_and_together_at_all(fan: Fan, parts: int) -> None:
    fan.parts(parts)
    await fan.crowd(25)
    await fan.bench.tell(activity())
    before: set[UUID] = set()
    for row in sorted(await fan.open(), key=lambda row: row["part"]):
        await fan.fan_outs().perform(row)
        seen = {alert["user_id"] for alert in await fan.bench.rows("alerts")}
        assert seen - before == {user for user in fan.users if user.bytes[15] % parts == row["part"]}
        before = seen
    await fan.once_each()


async def test_replicas_do_the_parts_of_a_fan_out_at_once_and_tell_each_user_once(
    fan: Fan, monkeypatch: pytest.MonkeyPatch
) -> None:
    fan.parts(4)
    all_begun, page = asyncio.Barrier(4), fan.bench.alerts.raise_page
    begun: set[UUID] = set()

    async def together(row: Any, tx: Tx) -> Done[bool]:
        if row["id"] not in begun:
            begun.add(row["id"])
            async with asyncio.timeout(30):
                await all_begun.wait()
        return await page(row, tx)

    monkeypatch.setattr(fan.bench.alerts, "raise_page", together)
    await fan.crowd(25)
    await fan.bench.tell(activity())
    replicas = [fan.worker(), fan.worker()]
    await asyncio.gather(*(replica.turn() for replica in replicas))
    await asyncio.gather(*(replica.idle() for replica in replicas))
    assert await fan.open() == []
    await fan.once_each()


async def test_few_rules_are_found_without_reading_all_users(fan: Fan) -> None:
    """A generic plan knows of no symbol how many watch it: those of most symbols are few."""
    bench = fan.bench
    await bench.execute("insert into users (user_id) select gen_random_uuid() from generate_series(1, 20000)")
    await bench.execute("insert into watched (symbol, user_id) select 'CROWD', user_id from users")
    await bench.execute(
        "insert into watched (symbol, user_id) select 'FEW' || n, user_id "
        "from generate_series(1, 99) n, (select user_id from users limit 3) few"
    )
    await bench.execute("analyze users; analyze watched")
    statement = str(RULES_FOR)
    for number, name in enumerate(("symbols", "min_score", "min_premium_usd"), start=1):
        statement = statement.replace(f":{name}", f"${number}")
    async with bench.door.read() as tx:
        await tx.connection.execute(f"prepare few as {statement}")
        plan = [row[0] for row in await tx.connection.fetch("explain execute few ('{FEW1}', 60, 0)")]
        await tx.connection.execute("deallocate few")
    assert [line for line in plan if "Scan" in line]
    assert not [line for line in plan if "Seq Scan" in line or "Hash" in line or "Merge" in line]


async def test_a_claim_reads_what_it_takes_however_many_wait(bench: Bench, database_url: str) -> None:
    """Statistics of a quiet hour say that nothing waits; sorting nothing costs nothing."""
    service = build(Environment(SharedSettings(database_url=database_url), bench.clock))
    worker = next(one for one in service._runners if isinstance(one, Worker) and one._work.table == "deliveries")
    values = "gen_random_uuid(), cast('2026-07-01' as date), gen_random_uuid(), gen_random_uuid(), 'discord'"
    columns = "id, session, alert_id, user_id, channel, lane, status, due_at, created_at"
    some = f"insert into deliveries ({columns}) select {values}, n, {{}}, {{}}, now() from generate_series(1, {{}}) n"
    await bench.execute(some.format("'done'", "now()", 20_000))
    await bench.execute("analyze deliveries")
    for due_at in ("now()", "now() + interval '1 hour'"):
        await bench.execute(some.format("'pending'", due_at, 10_000))
    for statement in (worker._claimable, worker._look_at):
        sql = str(statement)
        for number, (name, kind) in enumerate((("now", "timestamptz"), ("kind", "text"), ("candidates", "bigint")), 1):
            sql = sql.replace(f":{name}", f"cast(${number} as {kind})")
        async with bench.door.read() as tx:
            await tx.connection.execute(f"prepare many (timestamptz, text, bigint) as {sql}")
            rows = await tx.connection.fetch("explain (analyze) execute many (now(), 'discord', 100)")
            await tx.connection.execute("deallocate many")
        plan = [str(row[0]) for row in rows]
        assert not [line for line in plan if "Sort" in line and "Sort Key" not in line], plan
        assert max(float(found) for line in plan for found in re.findall(r"actual .*rows=([0-9.]+)", line)) <= 100
    await service.close()


async def test_every_channel_stands_back_for_the_fan_outs_of_its_process(bench: Bench, database_url: str) -> None:
    service = build(Environment(SharedSettings(database_url=database_url), bench.clock))
    works = [runner._work for runner in service._runners if isinstance(runner, Worker)]
    (fan_outs,) = (cast("FanOuts", work.perform.__self__) for work in works if work.kind == "fan-out")  # type: ignore[attr-defined]
    channels = [work for work in works if work.table == "deliveries"]
    assert len(channels) >= 2
    assert {id(work.stands_back) for work in channels} == {id(fan_outs._first)}
    await service.close()


@pytest.mark.parametrize("most_s", [10.0, 0.0], ids=["in time", "for too long"])
async def test_deliveries_of_fan_outs_stand_back_while_pages_are_written_and_are_woken_then(
    fan: Fan, monkeypatch: pytest.MonkeyPatch, most_s: float
) -> None:
    fan.first = Precedence(most_s)
    held, page = list[tuple[bool, int]](), fan.bench.alerts.raise_page

    async def watched(row: Any, tx: Tx) -> Done[bool]:
        held.append((fan.first(), fan.wakes))
        return await page(row, tx)

    monkeypatch.setattr(fan.bench.alerts, "raise_page", watched)
    await fan.crowd()
    await fan.bench.tell(activity())
    fan.wakes = 0
    await fan.finish()
    pages = -(-USERS // 2) + 1
    assert held == [(most_s > 0, 0 if most_s else number) for number in range(pages)]
    assert not fan.first()
    assert fan.wakes == (1 if most_s else pages)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside others"])
async def test_pages_are_done_two_at_once_but_singly_beside_alerts_that_do_not_wait_for_them(
    fan: Fan, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    fan.parts(2)
    meeting, under_way, most, page = asyncio.Barrier(2), 0, 0, fan.bench.alerts.raise_page

    async def watched(row: Any, tx: Tx) -> Done[bool]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if not beside and row["part"] in first:
            first.discard(row["part"])
            await asyncio.wait_for(meeting.wait(), 10)
        done = await page(row, tx)
        under_way -= 1
        return done

    first = {0, 1}
    monkeypatch.setattr(fan.bench.alerts, "raise_page", watched)
    monkeypatch.setattr("shared.work.pace.ALONE_S", 3_600.0)
    await fan.bench.tell(activity(symbol="MSFT"))
    await fan.crowd()
    await fan.bench.tell(activity())
    assert fan.bench.alerts.quiet(), "neither its own event nor one that nobody hears of is held up by pages"
    if beside:
        await fan.bench.user("TSLA")
        await fan.bench.tell(activity(symbol="TSLA"))
    await fan.finish()
    assert await fan.told() >= Counter(str(user) for user in fan.users)
    assert most == (1 if beside else 2)


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
