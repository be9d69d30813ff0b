"""Preferences on a real database: what is held back is a row with its reason, what waits goes out at its time."""

import asyncio
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text

from services.alerts.domain.routing import ANY, Cap, Quiet, Wishes
from services.alerts.service import Preferences, Said
from services.alerts.store.preferences import PreferenceStore
from shared.clock import new_id
from shared.contracts.alerts import DeliverySettled
from shared.contracts.api import UserSignedUp
from shared.contracts.broker import OrderRejected
from shared.errors import Transient
from tests.alerts.conftest import ACTOR, NOW, Bench, activity, contract
from tests.alerts.test_notices import filled, receipt, traded
from tests.alerts.test_routes import Client, client
from tests.conftest import eventually

__all__ = ["client"]


async def wish(bench: Bench, user_id: UUID, wishes: Wishes, timezone: str | None = None) -> None:
    preferences = Preferences(PreferenceStore(), clock=bench.clock, new_id=new_id)
    said = Said(wishes, timezone)
    await bench.door.run(lambda tx: preferences.put(ACTOR, user_id, said, tx))


def outcomes(rows: list[Any]) -> list[tuple[str, str, str | None]]:
    return sorted((row["channel"], row["status"], row["last_error"]) for row in rows)


async def test_a_kind_that_is_off_on_a_channel_is_suppressed_there_and_told_elsewhere(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.channel(user, "email", None)
    await wish(bench, user, Wishes(choices={("activity", "email"): "off", ("receipt", "discord"): "digest"}))
    _, settled = await bench.tell(activity())
    assert isinstance(settled, DeliverySettled)
    assert (settled.channel, settled.status, settled.attempts) == ("email", "suppressed", 0)
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.deliver()
    assert outcomes(await bench.rows("deliveries")) == [
        ("discord", "done", None),
        ("email", "suppressed", "switched off in your preferences"),
    ]
    assert outcomes(await bench.rows("notice_deliveries")) == [
        ("discord", "digested", "your preferences say: in the digest"),
        ("email", "done", None),
    ]
    assert len(bench.discord.sent) == len(bench.email.sent) == 1
    (digested,) = [row for row in await bench.rows("notice_deliveries") if row["status"] == "digested"]
    assert digested["settled_at"] == NOW


async def test_what_rings_in_quiet_hours_goes_out_at_their_end_and_what_is_critical_at_once(bench: Bench) -> None:
    user = await bench.user("AAPL", settings={})
    await bench.channel(user)
    await wish(bench, user, Wishes(quiet=Quiet(time(22), time(7))), "America/New_York")
    bench.clock.now = datetime(2025, 6, 3, 3, tzinfo=UTC)  # 23:00 in New York
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.handle(bench.telling.tell, [rejected(user)])
    await bench.deliver()
    assert [message.title for message in bench.discord.sent] == ["Your order was refused at paper (paper)"]
    bench.clock.now = datetime(2025, 6, 3, 10, 59, 59, tzinfo=UTC)
    await bench.deliver()
    assert len(bench.discord.sent) == 1
    bench.discord.errors = [Transient("away")] * 2  # an age that began at 23:00 would be too old to try again
    bench.clock.advance(1)
    for _ in range(3):
        await bench.deliver()
        bench.clock.advance(30)
    assert {row["status"] for row in await bench.rows("deliveries")} == {"done"}
    assert {row["status"] for row in await bench.rows("notice_deliveries")} == {"done"}


def rejected(user: UUID) -> Any:
    return OrderRejected(**traded(user), codes=("COLLAR",), reasons=("too far",))


async def test_the_time_zone_of_the_settings_holds_until_another_is_set(bench: Bench) -> None:
    user = await bench.user("AAPL", settings={"timezone": "Asia/Tokyo"})
    await bench.channel(user)
    await wish(bench, user, Wishes(quiet=Quiet(time(22), time(7))))  # 14:30 UTC is 23:30 in Tokyo
    await bench.tell(activity())
    assert [row["due_at"] for row in await bench.rows("deliveries")] == [datetime(2025, 6, 2, 22, tzinfo=UTC)]
    await wish(bench, user, Wishes(quiet=Quiet(time(22), time(7))), "Europe/Berlin")
    await bench.tell(activity(contract(score=95)))
    assert min(row["due_at"] for row in await bench.rows("deliveries")) == NOW


async def test_what_is_over_a_cap_is_digested_and_the_next_hour_has_room_again(bench: Bench) -> None:
    user, other = await bench.user(), await bench.user()
    for one in (user, other):
        await bench.channel(one)
    await wish(bench, user, Wishes(caps=(Cap(ANY, "discord", 2),)))
    for number in range(4):
        await bench.handle(bench.telling.tell, [receipt(user, amount=Decimal(number + 1)), receipt(other)])
    bench.clock.advance(3600)
    await bench.handle(bench.telling.tell, [receipt(user)])
    rows = [row for row in await bench.rows("notice_deliveries") if row["user_id"] == user]
    assert [status for _, status, _ in outcomes(rows)] == ["digested"] * 2 + ["pending"] * 3
    assert sum(row["user_id"] == other for row in await bench.rows("notice_deliveries")) == 4


async def test_of_two_that_ring_at_once_a_cap_of_one_lets_one_through(bench: Bench) -> None:
    user = await bench.user()
    await bench.channel(user)
    await wish(bench, user, Wishes(caps=(Cap(ANY, ANY, 1),)))
    async with bench.database.transaction() as tx:
        await bench.telling.tell([receipt(user)], tx)
        second = asyncio.create_task(bench.handle(bench.telling.tell, [receipt(user)]))

        async def waits_or_is_done() -> bool:
            blocked = "pg_stat_activity where wait_event_type = 'Lock' and query like '%preferences%'"
            return second.done() or bool(await bench.rows(blocked))

        await eventually(waits_or_is_done)
    await second
    assert sorted(row["status"] for row in await bench.rows("notice_deliveries")) == ["digested", "pending"]


async def test_what_waits_for_the_end_of_very_long_quiet_hours_counts_for_the_hour_in_which_it_goes_out(
    bench: Bench,
) -> None:
    user = await bench.user()
    await bench.channel(user)
    await wish(bench, user, Wishes(quiet=Quiet(time(14, 30), time(14, 29)), caps=(Cap(ANY, ANY, 1),)))
    await bench.handle(bench.telling.tell, [receipt(user)])  # it is 14:30
    bench.clock.advance(24 * 3600 - 60)
    await bench.handle(bench.telling.tell, [receipt(user)])
    assert sorted(row["status"] for row in await bench.rows("notice_deliveries")) == ["digested", "pending"]


async def test_a_cap_counts_alerts_and_notices_together_and_not_what_was_not_told(bench: Bench) -> None:
    user = await bench.user("AAPL", "MSFT")
    await bench.channel(user)
    await wish(bench, user, Wishes(caps=(Cap(ANY, ANY, 2),), choices={("receipt", ANY): "off"}))
    await bench.handle(bench.telling.tell, [receipt(user)] * 3)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [filled(user)])
    await bench.tell(activity(symbol="MSFT"))
    statuses = [row["status"] for row in await bench.rows("deliveries")]
    assert sorted(statuses) == ["digested", "pending"]


@pytest.mark.parametrize("cuts", [(), (1,), (2, 3), (1, 2, 3, 4, 5)])
async def test_a_batch_that_is_cut_differently_or_comes_twice_makes_the_same_rows(
    bench: Bench, cuts: tuple[int, ...]
) -> None:
    user = UUID(int=1)
    await bench.handle(bench.alerts.note_user, signed_up(user))
    await bench.channel(user)
    await wish(bench, user, Wishes(caps=(Cap(ANY, ANY, 3),)))
    events = [receipt(user, id=UUID(int=n), amount=Decimal(n + 1)) for n in range(6)]
    for _ in range(2):
        for start, end in zip((0, *cuts), (*cuts, 6), strict=True):
            await bench.handle(bench.telling.tell, events[start:end])
    rows = await bench.rows("notice_deliveries order by notice_id")
    assert [(row["notice_id"].int, row["status"]) for row in rows] == [
        (n, "pending" if n < 3 else "digested") for n in range(6)
    ]


def signed_up(user: UUID) -> Any:
    return UserSignedUp(id=uuid4(), time=NOW, user_id=user, email="a@example.org", role="user")


async def test_who_has_said_nothing_costs_no_statement_more(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    async with bench.database.transaction() as tx:
        ran: list[str] = []
        tx.connection.add_query_logger(lambda query: ran.append(query.query))
        await bench.telling.tell([receipt(user)], tx)
    ours = [query for query in ran if "pg_" not in query and "jit" not in query]  # asyncpg asks of new types
    assert len(ours) == 5  # words, known, add, audience, deliveries


async def test_preferences_are_kept_shown_and_replaced(client: Client) -> None:
    user = await client.bench.user(settings={"timezone": "Europe/Paris"})
    path = f"/api/alerts/{user}/preferences"
    first = (await client("GET", path, user)).json()
    assert (first["timezone"], first["own_timezone"], first["choices"]) == ("Europe/Paris", False, [])
    body = {
        "timezone": "Asia/Tokyo",
        "locale": "de-DE",
        "quiet_hours": {"start": "22:00", "end": "07:30"},
        "choices": [{"kind": "receipt", "channel": "email", "choice": "digest"}],
        "caps": [{"kind": "*", "channel": "discord", "per_hour": 5}],
    }
    answer = await client("PUT", path, user, json=body)
    assert answer.status_code == 200, answer.text
    shown = (await client("GET", path, user)).json()
    assert {key: shown[key] for key in body} == body
    assert (await client("PUT", path, user, json={})).json()["quiet_hours"] is None
    told = [row["topic"] for row in await client.bench.rows("outbox")]
    assert told == ["api.audit", "api.audit"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"timezone": "Mars/Olympus"}, "no time zone"),
        ({"locale": "not a locale"}, "locale"),
        ({"quiet_hours": {"start": "22:00", "end": "22:00"}}, "none"),
        ({"quiet_hours": {"start": "22:00:01", "end": "07:00"}}, "HH:MM"),
        ({"quiet_hours": {"start": "22:00+02:00", "end": "07:00"}}, "HH:MM"),
        ({"quiet_hours": {"start": "25:00", "end": "07:00"}}, "quiet_hours"),
        ({"caps": [{"per_hour": 0}]}, "per_hour"),
        ({"caps": [{"per_hour": -1}]}, "per_hour"),
        ({"caps": [{"per_hour": 1}, {"per_hour": 2}]}, "more than one cap"),
        ({"choices": [{"choice": "maybe"}]}, "choice"),
        ({"choices": [{"kind": "Nonsense!", "choice": "on"}]}, "kind"),
        ({"choices": [{"channel": "pigeon", "choice": "on"}]}, "channel"),
        ({"surprise": 1}, "surprise"),
    ],
)
async def test_preferences_that_make_no_sense_are_refused_and_the_error_says_why(
    client: Client, body: dict[str, Any], told: str
) -> None:
    user = uuid4()
    answer = await client("PUT", f"/api/alerts/{user}/preferences", user, json=body)
    assert answer.status_code == 422
    assert told in answer.text
    assert (await client("GET", f"/api/alerts/{user}/preferences", user)).json()["updated_at"] is None


async def test_the_log_says_why_something_did_not_come_page_by_page(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL")
    await bench.channel(user)
    await wish(bench, user, Wishes(choices={("receipt", ANY): "off"}))
    await bench.tell(activity())
    bench.clock.advance(1)
    await bench.handle(bench.telling.tell, [receipt(user)])
    bench.clock.advance(1)
    await bench.deliver()
    path = f"/api/alerts/{user}/deliveries"
    first = (await client("GET", f"{path}?limit=1", user)).json()
    (newest,) = first["deliveries"]
    assert (newest["kind"], newest["state"]) == ("receipt", "suppressed")
    assert newest["reason"] == "switched off in your preferences"
    rest = (await client("GET", path, user, params={"before": first["next"]})).json()
    assert [(one["kind"], one["state"], one["reason"]) for one in rest["deliveries"]] == [("activity", "sent", None)]
    assert rest["next"] is None
    for method, what in (("GET", "deliveries"), ("GET", "preferences"), ("PUT", "preferences")):
        more = {"json": {}} if method == "PUT" else {}
        assert (await client(method, f"/api/alerts/{user}/{what}", uuid4(), **more)).status_code == 403


async def test_a_delivery_that_waits_is_not_too_old_when_its_time_comes(bench: Bench) -> None:
    user = await bench.user()
    await bench.channel(user)
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.execute("update notice_deliveries set planned_at = created_at + interval '25 hours'")
    await bench.execute("update notice_deliveries set due_at = planned_at")
    bench.clock.now = NOW + timedelta(hours=25)
    bench.discord.errors = [Transient("away")]
    await bench.deliver()
    async with bench.database.read() as tx:
        assert await tx.fetchval(text("select status from notice_deliveries")) == "pending"
