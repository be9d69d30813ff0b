"""Digests on a real database: planned once, made once whatever crashes, sent where there is something to say."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.alerts.domain.routing import Cap, Wishes
from services.alerts.domain.text import Message, context
from services.alerts.service import Preferences, Said
from services.alerts.service.digests import PAGE, Digests, Wish
from services.alerts.service.gathering import Gathering
from services.alerts.store.digests import DigestStore
from services.alerts.store.gathered import GatheredStore
from services.alerts.store.preferences import PreferenceStore
from services.alerts.templates import render_packaged
from shared.contracts.api import UserSettingsChanged
from shared.contracts.broker import PositionChanged
from shared.contracts.detector import LeaderboardChanged, LeaderboardEntry
from shared.db import Tx
from shared.messaging.door import Done, Door
from shared.messaging.outbox import Outbox
from shared.work import Worker
from tests.alerts.conftest import ACTOR, NOW, Bench, activity, contract
from tests.alerts.test_notices import filled
from tests.alerts.test_preferences import wish
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

T = TypeVar("T")
DAILY = Wish("daily", 8)


class Desk:
    """Digests as main wires them, over a door of one's own."""

    def __init__(self, bench: Bench, door: Door | None = None) -> None:
        self.bench = bench
        door = bench.door if door is None else door
        self.digests = Digests(DigestStore(), bench.notices, bench.router, door, clock=bench.clock, wake=lambda: None)
        self.gathering = Gathering(GatheredStore(), bench.clock)
        self.worker = Worker(self.digests.work(), door, bench.clock, draw=lambda: 0.5)

    async def choose(self, user_id: UUID, wish: Wish = DAILY) -> datetime | None:
        chosen = await self.bench.door.run(lambda tx: self.digests.choose(user_id, wish, tx))
        return chosen.next_due_at

    async def held_back(self) -> UUID:
        """Return a user with daily digests, an alert of whom waits for the next one."""
        user = await self.bench.user("AAPL")
        await self.bench.channel(user)
        await self.choose(user)
        await self.bench.tell(activity())
        await self.bench.execute("update deliveries set status = 'digested', settled_at = created_at")
        return user

    async def run(self) -> None:
        """Plan and make what is due, and what is left of an earlier time."""
        await self.digests.plan(self.bench.clock())
        await self.worker.turn()
        await self.worker.idle()

    async def next(self, user_id: UUID) -> None:
        """Go on to a minute after the user's next digest is due, and run."""
        (row,) = [row for row in await self.bench.rows("digest_plans") if row["user_id"] == user_id]
        self.bench.clock.now = row["next_due_at"] + timedelta(seconds=61)
        await self.run()

    async def lines(self, user_id: UUID) -> list[list[str]]:
        rows = await self.bench.rows("notices order by at")
        return [row["lines"] for row in rows if row["user_id"] == user_id and row["kind"].startswith("digest.")]


@pytest.fixture
def desk(bench: Bench) -> Desk:
    return Desk(bench)


async def test_a_digest_comes_at_the_users_hour_once_with_what_happened(desk: Desk) -> None:
    bench = desk.bench
    user = await bench.user("AAPL", "TSLA", settings={"timezone": "Asia/Kathmandu"})
    await bench.channel(user)
    assert await desk.choose(user) == datetime(2025, 6, 3, 2, 15, tzinfo=UTC)
    await bench.tell(activity(contract("A", 90)))
    await bench.tell(activity(contract("B", 70), symbol="TSLA", simulated=True))
    await desk.run()
    assert await bench.rows("digests") == []
    await desk.next(user)
    await desk.run()
    for _ in range(3):
        await bench.deliver()
    (told,) = [one for one in bench.discord.sent if "digest" in one.title]
    assert told.title == "[SIMULATED] Your daily digest, June 3, 2025"
    assert told.lines == (
        "Top alerts:",
        "AAPL: 1 unusual contract, score 90, premium $100k",
        "[SIMULATED] TSLA: 1 unusual contract, score 70, premium $100k",
    )
    (row,) = await bench.rows("digests")
    assert (row["status"], row["until"]) == ("done", datetime(2025, 6, 3, 2, 15, tzinfo=UTC))
    await desk.next(user)
    assert len(await desk.lines(user)) == 1
    assert [row["sections"] for row in await bench.rows("digests order by until")][1] == []


async def test_a_weekly_digest_covers_the_week(desk: Desk) -> None:
    user = await desk.bench.user("AAPL")
    due = await desk.choose(user, Wish("weekly", 18, 4))
    assert due == datetime(2025, 6, 6, 18, tzinfo=UTC)
    await desk.bench.tell(activity())
    await desk.next(user)
    (row,) = await desk.bench.rows("notices")
    assert (row["kind"], row["at"]) == ("digest.weekly", due)


async def test_nobody_who_switched_them_off_gets_digests(desk: Desk) -> None:
    user = await desk.bench.user("AAPL")
    await desk.choose(user)
    assert await desk.choose(user, Wish("off")) is None
    await desk.bench.tell(activity())
    desk.bench.clock.advance(3 * 86_400)
    await desk.run()
    assert await desk.bench.rows("digests") == []


async def test_a_user_who_moves_gets_the_next_digest_at_the_hour_of_the_new_zone(desk: Desk) -> None:
    user = await desk.bench.user(settings={"timezone": "UTC"})
    await desk.choose(user)
    fields: dict[str, Any] = {"alerts_enabled": True, "min_score": 60.0, "min_premium_usd": Decimal(0)}
    moved = UserSettingsChanged(id=uuid4(), time=NOW, user_id=user, timezone="America/New_York", **fields)
    await desk.bench.handle(desk.digests.note_settings, moved)
    (row,) = await desk.bench.rows("digest_plans")
    assert row["next_due_at"] == datetime(2025, 6, 3, 12, tzinfo=UTC)


async def test_planners_at_once_plan_each_user_once_and_all_pages(desk: Desk) -> None:
    bench = desk.bench
    async with bench.database.transaction() as tx:
        await tx.execute(
            text("""
            insert into digest_plans (user_id, frequency, hour, weekday, covered_until, next_due_at)
            select gen_random_uuid(), 'daily', 8, 0, cast(:covered as timestamptz),
                cast(:covered as timestamptz) + interval '1 day' from generate_series(1, :n)"""),
            covered=datetime(2025, 6, 1, 8, tzinfo=UTC),
            n=PAGE + 20,
        )
    others = [Desk(bench) for _ in range(3)]
    await asyncio.gather(*(one.digests.plan(NOW) for one in others))
    rows = await bench.rows("digests")
    assert len(rows) == len({row["user_id"] for row in rows}) == PAGE + 20
    assert {row["next_due_at"] for row in await bench.rows("digest_plans")} == {datetime(2025, 6, 3, 8, tzinfo=UTC)}


async def test_what_was_held_back_is_told_in_one_digest_only(desk: Desk) -> None:
    bench, user = desk.bench, await desk.held_back()
    await desk.next(user)
    await bench.tell(activity(symbol="TSLA"))
    await desk.next(user)
    (lines,) = await desk.lines(user)
    assert "Held back for this digest:" in lines
    assert "AAPL: 1 unusual contract, score 80 (2:30 PM UTC)" in lines


def board(at: datetime, *entries: tuple[str, float]) -> LeaderboardChanged:
    made = tuple(
        LeaderboardEntry(
            rank=rank,
            contract=name,
            symbol="AAPL",
            score=score,
            premium_usd=Decimal(1_250_000),
            volume=5_000,
            open_interest=400,
            simulated=False,
        )
        for rank, (name, score) in enumerate(entries, 1)
    )
    return LeaderboardChanged(id=uuid4(), time=at, session=at.date(), as_of=at, symbols_scanned=1, entries=made)


async def test_the_leaderboard_of_the_period_shows_each_contract_at_its_best(desk: Desk) -> None:
    user = await desk.bench.user()
    await desk.choose(user, Wish("weekly", 8, 0))
    first, second = "AAPL250620C00200000", "AAPL250718P00182500"
    old = NOW - timedelta(days=9)
    for one in (
        board(old, (first, 99.0)),
        board(NOW, (first, 70.0)),
        board(NOW + timedelta(minutes=1), (first, 80.0), (second, 60.0)),
        board(NOW - timedelta(minutes=1), (second, 99.0)),
        board(NOW + timedelta(days=1), (second, 85.0)),
    ):
        await desk.bench.handle(desk.gathering.note_leaders, one)
    await desk.next(user)
    (lines,) = await desk.lines(user)
    assert lines == [
        "Leaderboard:",
        "1. AAPL 2025-07-18 182.5 put, score 85, premium $1.2M, volume 5,000 over 400 open",
        "2. AAPL 2025-06-20 200 call, score 80, premium $1.2M, volume 5,000 over 400 open",
    ]


def position(user: UUID, account: UUID, version: int, realised: str, symbol: str = "AAPL") -> PositionChanged:
    return PositionChanged(
        id=uuid4(),
        time=NOW,
        account_id=account,
        user_id=user,
        version=version,
        symbol=symbol,
        quantity=Decimal(0),
        average_price=None,
        realised_fifo=Decimal(realised),
        realised_average=Decimal(0),
        fees=Decimal(0),
    )


async def test_orders_and_gains_are_those_of_the_period_and_paper_is_not_live(desk: Desk) -> None:
    bench = desk.bench
    user, paper, live = await bench.user(), uuid4(), uuid4()
    await desk.choose(user)
    here: dict[str, Any] = {"account_id": paper, "fee": Decimal("0.10")}
    bought = [filled(user, **here, quantity=Decimal(n), price=Decimal(price)) for n, price in ((10, 100), (30, 101))]
    sold = filled(user, account_id=live, mode="live", side="sell", symbol="BTC/EUR", quantity=Decimal("0.5"))
    await bench.handle(desk.gathering.note_fills, [*bought, sold])
    changes = [
        position(user, paper, 1, "0"),
        position(user, paper, 3, "12.5"),
        position(user, paper, 2, "5"),
        position(user, live, 7, "1000", "BTC/EUR"),  # known from here on
    ]
    await bench.handle(desk.gathering.note_positions, changes)
    await bench.handle(desk.gathering.note_positions, [position(user, live, 8, "990", "BTC/EUR")])
    await desk.next(user)
    await bench.handle(desk.gathering.note_positions, [position(user, paper, 4, "13.5")])
    await desk.next(user)
    first, second = await desk.lines(user)
    assert first == [
        "Orders and P&L:",
        "BTC/EUR (live): sold 0.5 at 100.02",
        "AAPL (paper): bought 40 at 100.75",
        "Realised (live): -10.00 EUR before fees of 0.00 EUR",
        "Realised (paper): +12.50 USD before fees of 0.20 USD",
    ]
    assert second == ["Orders and P&L:", "Realised (paper): +1.00 USD before fees of 0.00 USD"]


class Crash(BaseException):
    """The process ends here."""


class FragileDoor(Door):
    """A door whose process ends at one step: before, inside, or right after a transaction."""

    def __init__(self, bench: Bench, ends_at: int) -> None:
        super().__init__(bench.database, Outbox("alerts", lambda: None))
        self.left = ends_at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Crash

    async def run(self, use_case: Callable[[Tx], Awaitable[Done[T]]]) -> T:
        async def fragile(tx: Tx) -> Done[T]:
            self.step()
            done = await use_case(tx)
            self.step()
            return done

        answer = await super().run(fragile)
        self.step()
        return answer

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Tx]:  # pyright: ignore[reportIncompatibleMethodOverride] - the same
        async with super().transaction() as tx:
            self.step()
            yield tx
            self.step()
        self.step()


async def test_wherever_it_crashes_each_user_has_one_digest_a_period(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    whole = Desk(bench)
    await whole.choose(user)
    ends_at, crashed, day = 0, True, date(2025, 6, 2)
    while crashed:
        ends_at += 1
        await bench.tell(activity(contract(f"C{ends_at}"), session=day, as_of=bench.clock()))
        day += timedelta(days=1)
        (plan,) = await bench.rows("digest_plans")
        bench.clock.now = plan["next_due_at"] + timedelta(seconds=61)
        door = FragileDoor(bench, ends_at)
        with suppress(Crash):
            await Desk(bench, door).run()
        crashed = door.left <= 0
        for _ in range(3):  # others go on when the lease has run out
            bench.clock.advance(31)
            await whole.run()
            await bench.deliver()
        assert len(await whole.lines(user)) == ends_at
    assert ends_at > 10
    digests = await bench.rows("digests order by until")
    assert [row["since"] for row in digests[1:]] == [row["until"] for row in digests[:-1]]
    assert {row["status"] for row in digests} == {"done"}
    told = [one.delivery_id for one in bench.discord.sent if "digest" in one.title]
    assert len(told) == len(set(told)) == ends_at


async def test_users_choose_their_digests(client: Client) -> None:
    user = await client.bench.user(settings={"timezone": "Europe/London"})
    path = f"/api/alerts/{user}/digest"
    assert (await client("GET", path, user)).json() == {
        "frequency": "off",
        "hour": 8,
        "weekday": 0,
        "timezone": "Europe/London",
        "next_due_at": None,
    }
    put = await client("PUT", path, user, json={"frequency": "weekly", "hour": 7, "weekday": 6})
    assert put.status_code == 200
    assert put.json()["next_due_at"] == "2025-06-08T06:00:00Z"
    assert (await client("GET", path, user)).json() == put.json()
    for bad in ({"frequency": "hourly"}, {"frequency": "daily", "hour": 24}, {"frequency": "weekly", "weekday": 7}, {}):
        assert (await client("PUT", path, user, json=bad)).status_code == 422
    assert (await client("GET", path, uuid4())).status_code == 403
    assert (await client("PUT", path, uuid4(), json={"frequency": "daily"})).status_code == 403


def test_a_digest_reads_by_its_sections_on_discord_and_in_mail() -> None:
    section = {"title": "Top alerts", "lines": ["AAPL <b>", "@everyone"], "simulated": False, "shows": None}
    told = Message(
        delivery_id=uuid4(),
        target="x",
        title="Your daily digest",
        lines=("as notices read",),
        notes=(),
        simulated=False,
        at=NOW,
        kind="digest",
        fields={"sections": [section], "image_alt": 'a "chart"'},
        image=b"png",
    )
    mail = render_packaged("email", "digest", context(told))
    discord = render_packaged("discord", "digest", context(told))
    assert "Top alerts\n  AAPL <b>\n" in mail.text
    assert mail.html is not None
    assert "AAPL &lt;b&gt;" in mail.html
    assert 'alt="a &#34;chart&#34;"' in mail.html
    assert discord.text.startswith("**Top alerts**\n")
    assert "@everyone" not in discord.text


async def test_a_digest_is_not_put_off_to_the_next_digest_nor_capped(desk: Desk) -> None:
    bench = desk.bench
    user = await bench.user("AAPL")
    await bench.channel(user)
    await desk.choose(user)
    wishes = Wishes(choices={("*", "*"): "digest"}, caps=(Cap("*", "*", 0),))
    preferences = Preferences(PreferenceStore(), clock=bench.clock, new_id=uuid4, said=desk.digests.note_wishes)
    said = Said(wishes, timezone="America/New_York")
    await bench.door.run(lambda tx: preferences.put(ACTOR, user, said, tx))
    (plan,) = await bench.rows("digest_plans")
    assert plan["next_due_at"] == datetime(2025, 6, 3, 12, tzinfo=UTC)
    await bench.tell(activity())
    await desk.next(user)
    assert [row["status"] for row in await bench.rows("deliveries")] == ["digested"]
    assert [row["status"] for row in await bench.rows("notice_deliveries")] == ["pending"]
    (lines,) = await desk.lines(user)
    assert "AAPL: 1 unusual contract, score 80 (10:30 AM EDT)" in lines


async def test_who_holds_things_back_has_a_digest_until_nothing_is_held_back(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL")
    about, at = f"/api/alerts/{user}", f"/api/alerts/{user}/digest"
    caps = {"caps": [{"per_hour": 1}]}
    assert (await client("GET", at, user)).json()["frequency"] == "off"
    assert (await client("PUT", f"{about}/preferences", user, json=caps)).status_code == 200
    assert (await client("GET", at, user)).json()["frequency"] == "daily"
    assert (await client("PUT", at, user, json={"frequency": "off"})).status_code == 409
    weekly = {"frequency": "weekly", "weekday": 3}
    assert (await client("PUT", at, user, json=weekly)).status_code == 200
    choices = {"choices": [{"kind": "*", "channel": "email", "choice": "digest"}]}
    assert (await client("PUT", f"{about}/preferences", user, json=choices)).status_code == 200
    assert (await client("GET", at, user)).json()["frequency"] == "weekly"  # theirs stays
    assert (await client("PUT", at, user, json={"frequency": "off"})).status_code == 409
    assert (await client("PUT", f"{about}/preferences", user, json={})).status_code == 200
    assert (await client("PUT", at, user, json={"frequency": "off"})).status_code == 200


async def test_a_zone_of_ones_own_holds_whatever_the_settings_say(desk: Desk) -> None:
    bench = desk.bench
    user = await bench.user(settings={"timezone": "America/New_York"})
    assert await desk.choose(user) == datetime(2025, 6, 3, 12, tzinfo=UTC)
    await wish(bench, user, Wishes(), "Asia/Tokyo")
    async with bench.database.transaction() as tx:
        await desk.digests.note_wishes(user, Wishes(), tx)
    tokyo = datetime(2025, 6, 3, 23, tzinfo=UTC)
    assert [row["next_due_at"] for row in await bench.rows("digest_plans")] == [tokyo]
    fields: dict[str, Any] = {"alerts_enabled": True, "min_score": 60.0, "min_premium_usd": Decimal(0)}
    moved = UserSettingsChanged(id=uuid4(), time=NOW, user_id=user, timezone="Europe/Berlin", **fields)
    await bench.handle(desk.digests.note_settings, moved)
    assert [row["next_due_at"] for row in await bench.rows("digest_plans")] == [tokyo]


async def test_a_digest_is_made_a_minute_after_its_period_for_what_is_on_its_way(desk: Desk) -> None:
    user = await desk.held_back()
    (plan,) = await desk.bench.rows("digest_plans")
    desk.bench.clock.now = plan["next_due_at"] + timedelta(seconds=59)
    await desk.run()
    assert await desk.lines(user) == []
    desk.bench.clock.advance(2)
    await desk.run()
    assert len(await desk.lines(user)) == 1
