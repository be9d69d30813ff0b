"""What rings together is told in one message: after a wait, what comes later after an interval, and again unheard."""

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from asyncpg.exceptions import CheckViolationError

from services.alerts.domain.grouping import MOST_LINES, Grouping, grouping_of, lines_of, title_of
from services.alerts.domain.routing import ANY, Cap, Ring, Wishes
from services.alerts.ports import ChannelGone
from services.alerts.service import Preferences
from services.alerts.service.bundling import Bundling
from services.alerts.service.preferences import Said
from services.alerts.service.silences import NewSilence, Silences
from services.alerts.store.engagement import EngagementStore
from services.alerts.store.groups import KEEP, GroupStore
from services.alerts.store.preferences import PreferenceStore
from services.alerts.store.silences import SilenceStore
from shared.clock import new_id
from shared.contracts.alerts import DeliverySettled
from shared.work import Worker
from tests.alerts.conftest import ACTOR, NOW, Bench, activity, contract
from tests.alerts.test_notices import filled, receipt
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

ALL = Grouping("activity", "kind", 30, 300, None)
BY_SYMBOL = Grouping("activity", "symbol", 30, 300, None)
AGAIN = Grouping("activity", "kind", 30, 300, 3600)
SYMBOLS = ("AAPL", "MSFT", "TSLA")


def test_the_nearest_grouping_holds_and_critical_kinds_join_by_name_alone() -> None:
    everything, orders = Grouping(ANY, "kind", 1, 10, None), Grouping("order_rejected", "kind", 1, 10, None)
    said = (everything, ALL)
    assert grouping_of(said, Ring("activity")) == ALL
    assert grouping_of(said, Ring("receipt")) == everything
    assert [grouping_of(said, Ring(kind)) for kind in ("order_rejected", "digest.daily", "test")] == [None] * 3
    assert grouping_of((*said, orders), Ring("order_rejected")) == orders
    assert grouping_of((ALL,), Ring("receipt")) is None


@pytest.mark.parametrize(
    ("flushed_s_ago", "due_in_s"),
    [(None, 30), (1000, 30), (290, 30), (100, 200)],
    ids=["first", "long", "just", "soon"],
)
def test_a_group_waits_for_others_and_for_its_interval(flushed_s_ago: int | None, due_in_s: int) -> None:
    flushed: datetime | None = None if flushed_s_ago is None else NOW - timedelta(seconds=flushed_s_ago)
    assert ALL.due_at(flushed, NOW) == NOW + timedelta(seconds=due_in_s)


def test_a_group_says_how_many_it_is_and_about_what() -> None:
    assert title_of("activity", "AAPL", ["a", "b"], again=False) == "AAPL: 2 alerts"
    assert title_of("activity", "", ["a"], again=True) == "1 alert, not acknowledged yet"
    assert title_of("order_filled", "", ["[SIMULATED] a", "b"], again=False) == "[SIMULATED] 2 order filled messages"
    assert lines_of(["x"] * (MOST_LINES + 2)) == ("x",) * MOST_LINES + ("and 2 more",)
    assert lines_of(["x"]) == ("x",)


async def somebody(bench: Bench, *groupings: Grouping, wishes: Wishes | None = None, email: bool = False) -> UUID:
    user = await bench.user(*SYMBOLS)
    await bench.channel(user)
    if email:
        await bench.channel(user, "email", None)
    preferences = Preferences(PreferenceStore(), clock=bench.clock, new_id=new_id)
    said = Said(wishes or Wishes(), groupings=groupings)
    await bench.door.run(lambda tx: preferences.put(ACTOR, user, said, tx))
    return user


async def ring(bench: Bench, *symbols: str, score: float = 80.0) -> None:
    for symbol in symbols:
        await bench.tell(activity(contract(score=score), symbol=symbol))


async def pass_seconds(bench: Bench, seconds: float) -> None:
    bench.clock.advance(seconds)
    for _ in range(2):  # what goes to one target goes one after the other
        await bench.deliver()


def titles(bench: Bench) -> list[str]:
    return [message.title for message in bench.discord.sent]


async def test_the_first_wait_for_others_and_come_in_one_message_and_the_log_says_so(bench: Bench) -> None:
    user = await somebody(bench, ALL)
    await ring(bench, *SYMBOLS)
    await pass_seconds(bench, 29)
    assert titles(bench) == []
    assert await bench.rows("deliveries") == []
    await pass_seconds(bench, 1)
    assert titles(bench) == ["3 alerts"]
    assert [line[:4] for line in bench.discord.sent[0].lines] == list(SYMBOLS)
    rows = await bench.rows("deliveries")
    assert [(row["status"], row["last_error"]) for row in rows] == [("suppressed", "told in one message of 3")] * 3
    told = [str(dict(row)) for row in await bench.rows("outbox")]
    assert sum(DeliverySettled.type in event for event in told) == 3
    (notice,) = await bench.rows("notices")
    assert (notice["user_id"], notice["kind"], notice["title"]) == (user, "activity", "3 alerts")
    await pass_seconds(bench, 4000)
    assert titles(bench) == ["3 alerts"]


async def test_one_alone_comes_as_it_would_have_come(bench: Bench) -> None:
    await somebody(bench, BY_SYMBOL)
    await ring(bench, "AAPL", "MSFT")
    await pass_seconds(bench, 30)
    assert sorted(title[:4] for title in titles(bench)) == ["AAPL", "MSFT"]
    assert {message.kind for message in bench.discord.sent} == {"alert"}
    assert [row["status"] for row in await bench.rows("deliveries")] == ["done"] * 2
    assert await bench.rows("notices") == []


async def test_what_comes_later_waits_for_the_interval(bench: Bench) -> None:
    await somebody(bench, ALL)
    await ring(bench, "AAPL", "MSFT")
    await pass_seconds(bench, 30)
    await pass_seconds(bench, 60)
    await ring(bench, "AAPL", "MSFT", "TSLA", score=95)
    await pass_seconds(bench, 239)
    assert titles(bench) == ["2 alerts"]
    await pass_seconds(bench, 1)
    assert titles(bench) == ["2 alerts", "3 alerts"]
    await pass_seconds(bench, 4000)
    await ring(bench, "AAPL")
    assert len(titles(bench)) == 2


async def test_what_nobody_acknowledges_is_repeated_for_a_day_and_no_more_once_somebody_does(bench: Bench) -> None:
    users = [await somebody(bench, AGAIN) for _ in range(2)]
    await ring(bench, "AAPL", "MSFT")
    await pass_seconds(bench, 30)
    assert titles(bench) == ["2 alerts"] * 2
    first = (await bench.rows(f"notices where user_id = '{users[0]}'"))[0]["notice_id"]
    await pass_seconds(bench, 3600)
    assert titles(bench)[2:] == ["2 alerts, not acknowledged yet"] * 2
    await bench.door.run(lambda tx: bench.engagement.acknowledge(users[0], first, tx))
    alert = (await bench.rows(f"alerts where user_id = '{users[1]}' and symbol = 'AAPL'"))[0]["alert_id"]
    await bench.door.run(lambda tx: bench.engagement.acknowledge(users[1], alert, tx))
    await pass_seconds(bench, 3600)
    assert titles(bench)[4:] == ["1 alert, not acknowledged yet"]
    for _ in range(30):
        await pass_seconds(bench, 3600)
    assert len(titles(bench)) == 4 + 22  # the 2nd to the 23rd hour: the 24th is more than a day after the first ring
    assert await bench.rows("bundles where status <> 'done'") == []


@pytest.mark.parametrize("repeats", [0, 1], ids=["first", "repetition"])
async def test_whoever_acknowledges_a_groups_message_acknowledges_what_it_told(bench: Bench, repeats: int) -> None:
    user = await somebody(bench, AGAIN)
    other = await somebody(bench)
    await ring(bench, *SYMBOLS)
    await pass_seconds(bench, 30)
    await ring(bench, "TSLA", score=95.0)  # rang again since
    for _ in range(repeats):
        await pass_seconds(bench, 3600)
    message = (await bench.rows("notices order by created_at, notice_id"))[-1]
    engagement = EngagementStore()
    assert await bench.handle(lambda _, tx: engagement.acknowledged(tx, other, message["notice_id"], NOW), None) is None
    assert await bench.handle(lambda _, tx: engagement.acknowledged(tx, user, message["notice_id"], NOW), None) == NOW
    rows = {row["symbol"]: row["acknowledged_at"] for row in await bench.rows(f"alerts where user_id = '{user}'")}
    assert rows == {"AAPL": NOW, "MSFT": NOW, "TSLA": None}
    assert {row["acknowledged_at"] for row in await bench.rows(f"alerts where user_id = '{other}'")} == {None}


async def test_what_rang_again_is_repeated_by_its_later_message_alone(bench: Bench) -> None:
    await somebody(bench, AGAIN)
    await ring(bench, "AAPL", "MSFT")
    await pass_seconds(bench, 30)
    await ring(bench, "AAPL", "MSFT", score=95)
    await pass_seconds(bench, 300)
    assert titles(bench) == ["2 alerts"] * 2
    await pass_seconds(bench, 3300)
    assert len(titles(bench)) == 2
    await pass_seconds(bench, 300)
    assert titles(bench)[2:] == ["2 alerts, not acknowledged yet"]


async def test_what_is_silenced_acknowledged_or_rang_again_since_is_not_in_it(bench: Bench) -> None:
    user = await somebody(bench, ALL)
    await ring(bench, *SYMBOLS)
    silences = Silences(SilenceStore(), clock=bench.clock, new_id=new_id)
    asked = NewSilence(None, "AAPL", None, None, None, NOW + timedelta(hours=1), "enough")
    await bench.door.run(lambda tx: silences.add(ACTOR, user, asked, tx))
    alerts = {row["symbol"]: row["alert_id"] for row in await bench.rows("alerts")}
    await bench.door.run(lambda tx: bench.engagement.acknowledge(user, alerts["MSFT"], tx))
    await pass_seconds(bench, 30)
    (told,) = titles(bench)
    assert told.startswith("TSLA")
    why = {row["alert_id"]: (row["status"], row["last_error"]) for row in await bench.rows("deliveries")}
    assert why[alerts["MSFT"]] == ("suppressed", "you acknowledged it before")
    assert why[alerts["AAPL"]][1].startswith("silenced until")
    await ring(bench, "TSLA", score=90)
    bench.clock.advance(1)
    await ring(bench, "TSLA", score=100)
    await pass_seconds(bench, 300)
    assert len(titles(bench)) == 2
    assert {row["ring"] for row in await bench.rows("deliveries where status = 'done'")} == {1, 3}


async def test_notices_join_too_and_kinds_stay_apart(bench: Bench) -> None:
    user = await somebody(bench, Grouping(ANY, "symbol", 30, 300, None))
    await bench.handle(bench.telling.tell, [filled(user), filled(user), filled(user, symbol="MSFT"), receipt(user)])
    await pass_seconds(bench, 30)
    for _ in range(3):
        await bench.deliver()
    assert sorted(title[:10] for title in titles(bench)) == ["AAPL: 2 or", "Bought 10 ", "Your Openb"]


async def test_one_message_is_one_for_caps_turns_and_escalation(bench: Bench) -> None:
    wishes = Wishes(caps=(Cap("activity", ANY, 1),), turns=("discord", "email"), escalations={"activity": 10})
    await somebody(bench, ALL, wishes=wishes, email=True)
    bench.discord.errors = [ChannelGone("deleted")]
    await ring(bench, "AAPL", "MSFT")
    await pass_seconds(bench, 30)
    await pass_seconds(bench, 1)
    rows = await bench.rows("notice_deliveries order by channel")
    assert [(row["channel"], row["status"]) for row in rows] == [("discord", "failed"), ("email", "digested")]
    assert {row["channel"] for row in await bench.rows("deliveries")} == {"discord"}


async def test_a_crash_before_the_end_loses_and_doubles_nothing(bench: Bench) -> None:
    await somebody(bench, AGAIN)
    await ring(bench, "AAPL", "MSFT")
    await bench.execute("alter table notice_deliveries add constraint none check (channel = 'none')")
    bench.clock.advance(30)
    with pytest.raises(CheckViolationError):
        await bench.deliver()
    assert [row["status"] for row in await bench.rows("bundles")] == ["started"]
    assert await bench.rows("notices") == await bench.rows("deliveries") == []
    await ring(bench, "TSLA")
    await bench.execute("alter table notice_deliveries drop constraint none")
    for _ in range(3):
        await pass_seconds(bench, 31)
    assert titles(bench) == ["3 alerts"]
    assert sorted(row["status"] for row in await bench.rows("bundles")) == ["done", "pending"]


async def test_what_rings_while_it_is_told_by_one_of_several_replicas_is_in_one_message(bench: Bench) -> None:
    await somebody(bench, Grouping("activity", "kind", 1, 10, None))
    replicas = [Worker(Bundling(bench.router, bench.notices).work(), bench.door, bench.clock) for _ in range(3)]
    score = 60.0
    for _ in range(8):
        score += 11
        bench.clock.advance(10)
        await asyncio.gather(ring(bench, *SYMBOLS, score=score), *(one.turn() for one in replicas))
        await asyncio.gather(*(one.idle() for one in replicas))
    bench.clock.advance(10)
    await replicas[0].turn()
    await replicas[0].idle()
    last = {row["alert_id"]: row["notifications"] for row in await bench.rows("alerts")}
    items = [(row["alert_id"], row["ring"]) for row in await bench.rows("bundle_items")]
    assert len(items) == len(set(items))
    assert set(last.items()) <= set(items)
    told = {(row["alert_id"], row["ring"]) for row in await bench.rows("deliveries")}
    assert set(last.items()) <= told <= set(items)
    assert await bench.rows("bundles where status <> 'done'") == []


async def test_a_group_whose_user_has_no_target_left_is_empty_and_goes_on(bench: Bench) -> None:
    user = await somebody(bench, ALL)
    await ring(bench, "AAPL", "MSFT")
    await bench.execute("update channels set enabled = false")
    await pass_seconds(bench, 30)
    assert await bench.rows("notice_deliveries") == await bench.rows("deliveries") == []
    await bench.channel(user)
    await ring(bench, "AAPL", "MSFT", score=95)
    await pass_seconds(bench, 30)
    assert titles(bench) == ["2 alerts"]


async def test_what_ended_is_forgotten_after_a_week(bench: Bench) -> None:
    await somebody(bench, ALL)
    await ring(bench, "AAPL", "MSFT")
    await pass_seconds(bench, 30)
    forget = GroupStore().forget
    await forget(bench.door.transaction, bench.clock() + KEEP)
    assert len(await bench.rows("bundles")) == len(await bench.rows("groups")) == 1
    await forget(bench.door.transaction, bench.clock() + KEEP + timedelta(seconds=1))
    for table in ("bundles", "groups", "bundle_items"):
        assert await bench.rows(table) == []


async def test_groupings_are_kept_and_shown_and_those_that_make_no_sense_refused(client: Client) -> None:
    user = uuid4()
    path = f"/api/alerts/{user}/preferences"
    one: dict[str, Any] = {"kind": "activity", "by": "symbol", "wait_s": 20, "interval_s": 600, "repeat_s": 3600}
    assert (await client("PUT", path, user, json={"groupings": [one]})).json()["groupings"] == [one]
    for wrong, why in (
        ([one, one], "more than one grouping of activity"),
        ([{**one, "repeat_s": 599}], "repeat_s is interval_s at least"),
        ([{**one, "wait_s": 0}], "wait_s"),
        ([{**one, "wait_s": 3601}], "wait_s"),
        ([{**one, "interval_s": 9}], "interval_s"),
        ([{**one, "by": "colour"}], "by"),
        ([{**one, "kind": "digest.daily"}], "comes by itself"),
        ([{**one, "extra": 1}], "extra"),
    ):
        answer = await client("PUT", path, user, json={"groupings": wrong})
        assert (answer.status_code, why in answer.text) == (422, True), answer.text
    assert (await client("GET", path, user)).json()["groupings"] == [one]
