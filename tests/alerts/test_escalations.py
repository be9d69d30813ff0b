"""What nobody acknowledges in time goes to the channel whose turn is next: once, and no further than that."""

import asyncio
from datetime import time, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from asyncpg.exceptions import CheckViolationError

from services.alerts.domain.routing import ANY, Quiet, Ring, Wishes, escalates_after
from services.alerts.ports import ChannelGone
from services.alerts.service.escalating import Escalating
from services.alerts.service.silences import NewSilence, Silences
from services.alerts.store.escalations import KEEP, EscalationStore
from services.alerts.store.silences import SilenceStore
from shared.clock import new_id
from shared.contracts.alerts import DeliverySettled
from shared.errors import Permanent
from shared.work import Worker
from tests.alerts.conftest import ACTOR, NOW, Bench, activity, contract
from tests.alerts.test_notices import receipt
from tests.alerts.test_preferences import wish
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

TURNS = ("discord", "email", "webhook")
WISHES = Wishes(turns=TURNS, escalations={ANY: 10})


def after(channel: str, minutes: str = "10 minutes") -> str:
    return f"not acknowledged on {channel} within {minutes}"


async def somebody(bench: Bench, wishes: Wishes = WISHES, channels: tuple[str, ...] = TURNS) -> UUID:
    user = await bench.user("AAPL")
    for channel in channels:
        target = {"email": None, "webhook": "https://hooks.example/alerts"}
        await bench.channel(user, channel, *([target[channel]] if channel in target else []))
    await wish(bench, user, wishes)
    return user


async def told(bench: Bench, table: str = "deliveries") -> list[tuple[str, str, str | None]]:
    rows = await bench.rows(f"{table} order by created_at, channel")
    return [(row["channel"], row["status"], row["because"]) for row in rows]


async def pass_minutes(bench: Bench, minutes: int) -> None:
    bench.clock.advance(60 * minutes)
    await bench.deliver()


async def acknowledge(bench: Bench, user: UUID, subject: UUID) -> None:
    await bench.door.run(lambda tx: bench.engagement.acknowledge(user, subject, tx))


def test_the_nearest_escalation_holds_and_none_for_tests_and_digests() -> None:
    said = {ANY: 10, "order_rejected": 2}
    kinds = ("activity", "order_rejected", "test", "digest.daily")
    assert [escalates_after(said, Ring(kind)) for kind in kinds] == [10, 2, None, None]
    assert escalates_after({"receipt": 5}, Ring("activity")) is None


async def test_what_nobody_acknowledges_goes_from_channel_to_channel_and_the_log_says_why(bench: Bench) -> None:
    user = await somebody(bench)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.deliver()
    await pass_minutes(bench, 9)
    assert await told(bench) == await told(bench, "notice_deliveries") == [("discord", "done", None)]
    for _ in range(4):
        await pass_minutes(bench, 10)
    steps = [("discord", "done", None), ("email", "done", after("discord")), ("webhook", "done", after("email"))]
    assert await told(bench) == await told(bench, "notice_deliveries") == steps
    assert [len(one.sent) for one in (bench.discord, bench.email, bench.webhook)] == [2, 2, 2]
    notes = [{note for one in sender.sent for note in one.notes[:1]} for sender in (bench.email, bench.webhook)]
    assert notes == [{f"Escalated: {after(name)}."} for name in ("discord", "email")]
    assert not any("Escalated" in str(one.notes) for one in bench.discord.sent)


@pytest.mark.parametrize("what", ["alert", "notice"])
async def test_an_acknowledgement_ends_it_and_one_step_later_too(bench: Bench, what: str) -> None:
    user = await somebody(bench)
    table = "deliveries" if what == "alert" else "notice_deliveries"
    for _ in range(2):
        if what == "alert":
            await bench.tell(activity(contract(score=80.0 + 15 * len(await bench.rows("deliveries")))))
        else:
            await bench.handle(bench.telling.tell, [receipt(user)])
        await bench.deliver()
        bench.clock.advance(1)
    first, second = await bench.rows(f"{table} order by created_at")
    subject = f"{what}_id"
    if what == "notice":
        await acknowledge(bench, user, first[subject])
        await pass_minutes(bench, 10)
        assert await told(bench, table) == [("discord", "done", None)] * 2 + [("email", "done", after("discord"))]
    await acknowledge(bench, user, second[subject])
    for _ in range(3):
        await pass_minutes(bench, 10)
    assert len(await told(bench, table)) == (3 if what == "notice" else 2)


async def test_what_rang_again_escalates_by_its_last_ring_alone(bench: Bench) -> None:
    await somebody(bench)
    await bench.tell(activity())
    await bench.deliver()
    bench.clock.advance(300)
    await bench.tell(activity(contract(score=95)))
    await bench.deliver()
    await pass_minutes(bench, 6)
    assert [row["ring"] for row in await bench.rows("deliveries where channel = 'email'")] == []
    await pass_minutes(bench, 5)
    assert [row["ring"] for row in await bench.rows("deliveries where channel = 'email'")] == [2]


async def test_silences_hold_for_the_next_channel_too_and_the_log_says_so(bench: Bench) -> None:
    user = await somebody(bench)
    await bench.tell(activity())
    await bench.deliver()
    silences = Silences(SilenceStore(), clock=bench.clock, new_id=new_id)
    asked = NewSilence(None, "AAPL", None, None, None, NOW + timedelta(hours=1), "enough")
    await bench.door.run(lambda tx: silences.add(ACTOR, user, asked, tx))
    await pass_minutes(bench, 10)
    (_, *held) = await bench.rows("deliveries order by created_at, channel")
    assert [(row["channel"], row["status"]) for row in held] == [("email", "suppressed"), ("webhook", "suppressed")]
    assert all("silenced until" in row["last_error"] and row["because"] == after("discord") for row in held)


async def test_in_quiet_hours_time_runs_from_when_it_went_out(bench: Bench) -> None:
    await somebody(bench, Wishes(turns=TURNS, escalations={"activity": 10}, quiet=Quiet(time(14), time(15))))
    await bench.tell(activity())  # at half past two
    for minutes in (20, 10, 9):
        await pass_minutes(bench, minutes)
    assert await told(bench) == [("discord", "done", None)]
    await pass_minutes(bench, 1)
    assert await told(bench) == [("discord", "done", None), ("email", "done", after("discord"))]


async def test_what_was_acknowledged_while_its_escalation_waited_is_not_told(bench: Bench) -> None:
    user = await somebody(bench, Wishes(turns=TURNS, escalations={ANY: 40}, quiet=Quiet(time(15), time(16))))
    await bench.tell(activity())
    await bench.deliver()
    await pass_minutes(bench, 40)
    (_, waits) = await bench.rows("deliveries order by created_at")
    assert (waits["channel"], waits["status"], waits["escalated"]) == ("email", "pending", True)
    await acknowledge(bench, user, waits["alert_id"])
    await pass_minutes(bench, 60)
    (_, waits) = await bench.rows("deliveries order by created_at")
    assert (waits["status"], waits["last_error"]) == ("suppressed", "you acknowledged it before")
    assert bench.email.sent == []


async def test_what_was_held_back_when_it_was_to_go_out_goes_no_further(bench: Bench) -> None:
    said: dict[str, Any] = {"turns": TURNS, "escalations": {ANY: 10}, "quiet": Quiet(time(14), time(15))}
    user = await somebody(bench, Wishes(**said))
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    await wish(bench, user, Wishes(**said, choices={(ANY, "discord"): "off"}))
    for _ in range(3):
        await pass_minutes(bench, 30)
    assert await told(bench) == await told(bench, "notice_deliveries") == [("discord", "suppressed", None)]
    assert {row["status"] for row in await bench.rows("escalations")} == {"done"}


async def test_what_failed_over_escalates_from_where_it_went_and_is_told_once(bench: Bench) -> None:
    await somebody(bench)
    await bench.tell(activity())
    bench.discord.errors = [ChannelGone("deleted")]
    for _ in range(2):
        await bench.deliver()
    for _ in range(3):
        await pass_minutes(bench, 10)
    steps = [("discord", "failed"), ("email", "done"), ("webhook", "done")]
    assert [row[:2] for row in await told(bench)] == steps
    assert [len(one.sent) for one in (bench.email, bench.webhook)] == [1, 1]


async def test_an_escalation_that_fails_goes_to_the_one_after_and_is_one_there_too(bench: Bench) -> None:
    await somebody(bench)
    await bench.tell(activity())
    await bench.deliver()
    bench.email.errors = [Permanent("refused")]
    await pass_minutes(bench, 10)
    (row,) = await bench.rows("deliveries where channel = 'webhook'")
    assert (row["escalated"], row["because"]) == (True, "email did not take it: refused")


async def test_nothing_waits_where_there_is_no_next_channel_or_nobody_asked(bench: Bench) -> None:
    await somebody(bench, channels=("discord",))
    await somebody(bench, Wishes(turns=TURNS))
    await somebody(bench, Wishes(turns=TURNS, escalations={"receipt": 10}))
    await bench.tell(activity())
    assert await bench.rows("escalations") == []


async def test_a_crash_at_the_end_hands_on_once(bench: Bench) -> None:
    await somebody(bench)
    await bench.tell(activity())
    await bench.deliver()
    await bench.execute("alter table deliveries add constraint only_discord check (channel = 'discord')")
    bench.clock.advance(600)
    with pytest.raises(CheckViolationError):
        await bench.deliver()
    assert [row["status"] for row in await bench.rows("escalations")] == ["started"]
    await bench.execute("alter table deliveries drop constraint only_discord")
    for _ in range(3):
        bench.clock.advance(31)
        await bench.deliver()
    assert await told(bench) == [("discord", "done", None), ("email", "done", after("discord"))]
    assert sorted(row["status"] for row in await bench.rows("escalations")) == ["done", "pending"]


async def test_of_several_replicas_one_hands_on_and_it_tells_of_what_ends_there(bench: Bench) -> None:
    await somebody(bench, Wishes(turns=TURNS, escalations={ANY: 1}, choices={(ANY, "email"): "off"}))
    await bench.tell(activity())
    await bench.deliver()
    bench.clock.advance(60)
    replicas = [Worker(Escalating(bench.router).work(), bench.door, bench.clock) for _ in range(3)]
    await asyncio.gather(*(one.turn() for one in replicas))
    await asyncio.gather(*(one.idle() for one in replicas))
    await bench.deliver()
    because = after("discord", "1 minute")
    assert await told(bench) == [
        ("discord", "done", None),
        ("email", "suppressed", because),
        ("webhook", "done", because),
    ]
    events = [str(dict(row)) for row in await bench.rows("outbox")]
    assert sum(DeliverySettled.type in event for event in events) == 3


async def test_what_ended_is_forgotten_after_a_week(bench: Bench) -> None:
    await somebody(bench)
    await bench.tell(activity())
    await bench.deliver()
    await pass_minutes(bench, 10)
    forget = EscalationStore().forget
    await forget(bench.door.transaction, bench.clock() + KEEP)
    assert len(await bench.rows("escalations")) == 2
    await forget(bench.door.transaction, bench.clock() + KEEP + timedelta(seconds=1))
    assert [row["status"] for row in await bench.rows("escalations")] == ["pending"]


async def test_escalations_are_kept_and_shown_and_those_that_make_no_sense_refused(client: Client) -> None:
    user = uuid4()
    path = f"/api/alerts/{user}/preferences"
    said: dict[str, Any] = {
        "turns": ["webpush", "email"],
        "escalations": [{"kind": "*", "after_minutes": 15}, {"kind": "order_rejected", "after_minutes": 2}],
    }
    assert (await client("PUT", path, user, json=said)).json()["escalations"] == said["escalations"]
    once = {"kind": "*", "after_minutes": 15}
    for wrong, why in (
        ({"escalations": [once]}, "say in turns"),
        ({**said, "escalations": [once, once]}, "more than one escalation for *"),
        ({**said, "escalations": [{"after_minutes": 0}]}, "after_minutes"),
        ({**said, "escalations": [{"after_minutes": 1441}]}, "after_minutes"),
        ({**said, "escalations": [{"kind": "Order Rejected", "after_minutes": 5}]}, "kind"),
        ({**said, "escalations": [{"after_minutes": 5, "channel": "email"}]}, "channel"),
    ):
        answer = await client("PUT", path, user, json=wrong)
        assert (answer.status_code, why in answer.text) == (422, True), answer.text
    assert (await client("GET", path, user)).json()["escalations"] == said["escalations"]
