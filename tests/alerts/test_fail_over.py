"""Channels that take turns: what one could not take goes to the next, once, and the log says why."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from asyncpg.exceptions import CheckViolationError
from hypothesis import given
from hypothesis import strategies as st

from services.alerts.domain.routing import ANY, Choice, Wishes, in_turn
from services.alerts.ports import ChannelGone
from shared.contracts.alerts import DeliverySettled
from shared.contracts.base import Event
from shared.db import Tx
from shared.errors import Permanent, Transient
from shared.work import OutcomeUnknown, Settled
from tests.alerts.conftest import Bench, activity, contract
from tests.alerts.test_notices import receipt
from tests.alerts.test_preferences import wish
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

TURNS = ("discord", "email")
CHANNELS = ("discord", "email", "webhook", "fcm")


@given(st.permutations(CHANNELS), st.integers(0, 4), st.sets(st.sampled_from(CHANNELS)))
def test_each_channel_has_one_turn_however_many_fail_before_it(order: list[str], length: int, there: set[str]) -> None:
    turns = order[:length]
    told: list[str] = []
    left = in_turn(turns, there)
    while left:
        told.append(left[0])
        left = in_turn(turns, there, left[0])
    assert told == [channel for channel in turns if channel in there]
    assert all(in_turn(turns, there, other) == [] for other in CHANNELS if other not in turns)


async def taking_turns(bench: Bench, **choices: Choice) -> UUID:
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.channel(user, "email", None)
    await wish(bench, user, Wishes(turns=TURNS, choices={(ANY, channel): said for channel, said in choices.items()}))
    return user


async def ends(bench: Bench, table: str = "deliveries") -> list[tuple[str, str, str | None]]:
    return sorted((row["channel"], row["status"], row["because"]) for row in await bench.rows(table))


async def test_the_first_takes_it_alone(bench: Bench) -> None:
    user = await taking_turns(bench)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.deliver()
    assert await ends(bench) == await ends(bench, "notice_deliveries") == [("discord", "done", None)]
    assert bench.email.sent == []


async def test_where_the_first_is_switched_off_the_next_is_told_at_once(bench: Bench) -> None:
    await taking_turns(bench, discord="off")
    events = await bench.tell(activity())
    assert [event.channel for event in events if isinstance(event, DeliverySettled)] == ["discord"]
    await bench.deliver()
    assert await ends(bench) == [("discord", "suppressed", None), ("email", "done", None)]


@pytest.mark.parametrize(
    ("error", "end"),
    [(Permanent("refused"), "failed"), (ChannelGone("deleted"), "failed")],
    ids=["refused", "gone"],
)
async def test_what_the_first_does_not_take_goes_to_the_next_once_and_says_why(
    bench: Bench, error: Exception, end: str
) -> None:
    user = await taking_turns(bench)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    bench.discord.errors = [error] * 2
    for _ in range(3):
        await bench.deliver()
    because = f"discord did not take it: {error}"
    told = [("discord", end, None), ("email", "done", because)]
    assert await ends(bench) == await ends(bench, "notice_deliveries") == told
    assert len(bench.email.sent) == 2


@pytest.mark.parametrize(
    ("error", "end"), [(Transient("away"), "failed"), (OutcomeUnknown("hung up"), "unknown")], ids=["away", "unknown"]
)
async def test_what_was_tried_in_vain_goes_to_the_next_when_its_attempts_are_spent(
    bench: Bench, error: Exception, end: str
) -> None:
    await taking_turns(bench)
    await bench.tell(activity())
    bench.discord.errors = [error] * 20
    for _ in range(12):
        assert len(await bench.rows("deliveries")) == 1 or not await bench.rows("deliveries where status = 'pending'")
        await bench.deliver()
        bench.clock.advance(300)
    (first, second) = await ends(bench)
    assert (first[:2], second[:2]) == (("discord", end), ("email", "done"))
    assert len(bench.discord.sent) == 10


async def test_what_its_user_does_not_want_any_more_and_what_rang_again_is_not_handed_on(bench: Bench) -> None:
    user = await taking_turns(bench)
    await bench.tell(activity())
    bench.discord.errors = [Transient("away")]
    await bench.deliver()
    await bench.tell(activity(contract(score=95)))
    bench.clock.advance(60)
    for _ in range(2):
        await bench.deliver()
    rows = await bench.rows("deliveries")
    assert sorted((row["ring"], row["status"]) for row in rows) == [(1, "failed"), (2, "done")]
    await bench.handle(bench.telling.tell, [receipt(user)])
    await wish(bench, user, Wishes(turns=TURNS, choices={(ANY, "discord"): "off"}))
    await bench.deliver()
    assert await ends(bench, "notice_deliveries") == [("discord", "suppressed", None)]
    assert bench.email.sent == []


async def test_an_end_that_is_not_recorded_hands_nothing_on(bench: Bench) -> None:
    await taking_turns(bench)
    await bench.tell(activity())
    await bench.execute("alter table deliveries add constraint only_discord check (channel = 'discord')")
    bench.discord.errors = [Permanent("refused")]
    with pytest.raises(CheckViolationError):
        await bench.deliver()
    assert [row["status"] for row in await bench.rows("deliveries")] == ["started"]
    await bench.execute("alter table deliveries drop constraint only_discord")
    bench.clock.advance(31)
    bench.discord.errors = [Permanent("refused")]
    for _ in range(3):
        await bench.deliver()
        bench.clock.advance(31)
    assert [(channel, status) for channel, status, _ in await ends(bench)] == [("discord", "failed"), ("email", "done")]


async def test_what_a_replica_had_ended_when_it_died_another_one_hands_on_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await taking_turns(bench)
    await bench.tell(activity())
    other, ended = Bench(bench.database, bench.clock), asyncio.Event()
    bench.discord.errors, other.discord.errors = [Permanent("refused")], [Permanent("refused")]

    async def die(ends: Sequence[Settled], tx: Tx) -> list[Event]:
        del ends, tx
        ended.set()
        return await asyncio.Event().wait() and []

    monkeypatch.setattr(bench.router, "hand_on", die)
    dying = asyncio.create_task(bench.deliver())
    await ended.wait()
    await other.deliver()
    assert other.discord.sent == other.email.sent == []
    for worker in bench.workers:
        await worker._settle.close()  # and with it its transaction
    with pytest.raises(asyncio.CancelledError):
        await dying
    assert await ends(bench) == [("discord", "started", None)]
    for _ in range(4):
        bench.clock.advance(31)
        await other.deliver()
    assert await ends(bench) == [("discord", "failed", None), ("email", "done", "discord did not take it: refused")]
    assert (len(other.discord.sent), len(other.email.sent), bench.email.sent) == (1, 1, [])


async def test_turns_are_kept_and_shown_and_those_that_make_no_sense_refused(client: Client) -> None:
    user = uuid4()
    path = f"/api/alerts/{user}/preferences"
    wanted: dict[str, Any] = {"turns": ["webpush", "email"]}
    assert (await client("PUT", path, user, json=wanted)).json()["turns"] == wanted["turns"]
    for turns, why in ((["email", "email"], "one turn"), (["email"], "two at least"), (["pigeon"], "turns")):
        answer = await client("PUT", path, user, json={"turns": turns})
        assert (answer.status_code, why in answer.text) == (422, True)
    assert (await client("GET", path, user)).json()["turns"] == wanted["turns"]
