"""Alerts on a real database: raised once, updated in place, delivered, and told."""

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from services.alerts.domain.matching import watchlist_rule_id
from services.alerts.domain.text import REPEAT_NOTE, SIMULATED_NOTE
from services.alerts.ports import ChannelGone
from services.alerts.service import ChannelNotOffered, NewRule, Options
from services.alerts.workers import Retention
from shared.contracts.alerts import AlertRaised, AlertUpdated
from shared.contracts.api import StockAdded, StockRemoved, StockSettingsChanged, UserSettingsChanged
from shared.errors import Conflict, Invalid, NotFound, Permanent, Transient
from shared.work import Busy, OutcomeUnknown
from tests.alerts.conftest import ACTOR, NOW, SESSION, WEBHOOK, Bench, activity, contract


async def test_a_watcher_gets_an_alert_and_nobody_else_does(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.user("MSFT")
    (event,) = await bench.tell(activity())
    assert isinstance(event, AlertRaised)
    assert event.user_id == user_id
    assert event.rule_id == watchlist_rule_id(user_id)
    assert event.notified
    assert [row["user_id"] for row in await bench.rows("alerts")] == [user_id]


async def test_more_contracts_update_the_alert_in_place_and_count_each_once(bench: Bench) -> None:
    await bench.user("AAPL")
    await bench.tell(activity(contract("A", 70), contract("B", 65)))
    (event,) = await bench.tell(activity(contract("A", 72), contract("C", 61)))
    assert isinstance(event, AlertUpdated)
    assert (event.contract_count, event.top_score, event.notified) == (3, 72, False)
    (row,) = await bench.rows("alerts")
    assert [one["contract"] for one in row["best"]] == ["A", "B", "C"]
    assert row["premium_usd"] == 300_000


async def test_a_snapshot_that_shows_nothing_new_tells_nothing(bench: Bench) -> None:
    await bench.user("AAPL")
    await bench.tell(activity())
    assert not await bench.tell(activity())


async def test_it_rings_again_only_at_the_step_or_in_a_new_session(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    for score in (70, 79, 80, 89):
        await bench.tell(activity(contract("A", score)))
    assert len(await bench.rows("deliveries")) == 2
    tomorrow = SESSION + timedelta(days=1)
    await bench.tell(activity(contract("A", 70), session=tomorrow, as_of=NOW + timedelta(days=1)))
    assert len(await bench.rows("deliveries")) == 3
    assert bench.wakes == 3


async def test_a_batch_ends_where_its_events_one_by_one_would(bench: Bench) -> None:
    await bench.user("AAPL", "MSFT")
    batch = [
        activity(contract("A", 70)),
        activity(contract("M", 66), symbol="MSFT"),
        activity(contract("A", 75), contract("B", 62), as_of=NOW + timedelta(minutes=1)),
    ]
    events = await bench.tell(*batch)
    assert [type(event) for event in events] == [AlertRaised, AlertRaised]
    rows = {row["symbol"]: row for row in await bench.rows("alerts")}
    assert rows["AAPL"]["contract_count"] == 2
    assert rows["AAPL"]["top_score"] == 75
    assert rows["AAPL"]["as_of"] == NOW + timedelta(minutes=1)


async def test_the_same_event_again_derives_the_same_ids(bench: Bench) -> None:
    await bench.user("AAPL")
    event = activity()
    first = await bench.tell(event)
    async with bench.database.transaction() as tx:
        await tx.execute(text("delete from alerts"))
    again = await bench.tell(event)
    assert [told.id for told in first] == [told.id for told in again]


async def test_settings_decide_thresholds_and_whether_there_are_alerts_at_all(bench: Bench) -> None:
    await bench.user("AAPL", settings={"min_score": 90.0})
    await bench.user("AAPL", settings={"min_premium_usd": Decimal(100_001)})
    await bench.user("AAPL", settings={"alerts_enabled": False})
    eager = await bench.user("AAPL", settings={"min_score": 10.0})
    events = await bench.tell(activity(contract("A", 80, 100_000)))
    assert [event.key for event in events] == [str(eager)]


async def test_a_watchlist_that_arrives_before_its_user_works_with_defaults(bench: Bench) -> None:
    about: dict[str, Any] = {"id": uuid4(), "time": NOW, "user_id": uuid4()}
    await bench.handle(bench.alerts.watch, StockAdded(**about, symbol="AAPL"))
    assert len(await bench.tell(activity(contract("A", 61)))) == 1
    settings = UserSettingsChanged(
        **about, timezone="UTC", alerts_enabled=True, min_score=95, min_premium_usd=Decimal(0)
    )
    await bench.handle(bench.alerts.note_settings, settings)
    assert not await bench.tell(activity(contract("B", 90)))


async def test_a_removed_symbol_raises_no_more(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    removed = StockRemoved(id=uuid4(), time=NOW, user_id=user_id, symbol="AAPL")
    await bench.handle(bench.alerts.unwatch, removed)
    assert not await bench.tell(activity())


async def test_a_muted_symbol_raises_nothing_until_it_is_unmuted(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    about: dict[str, Any] = {"time": NOW, "user_id": user_id, "symbol": "AAPL"}
    await bench.handle(bench.alerts.watch, StockSettingsChanged(**about, id=uuid4(), alerts_enabled=False))
    assert not await bench.tell(activity())
    await bench.handle(bench.alerts.watch, StockSettingsChanged(**about, id=uuid4(), alerts_enabled=True))
    assert await bench.tell(activity())


async def test_an_own_rule_makes_an_alert_of_its_own(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    for rule in (
        NewRule("big", ("AAPL", "TSLA"), 75.0, Decimal(50_000)),
        NewRule("all", (), 1.0, Decimal(0)),
        NewRule("other", ("TSLA",), 0.0, Decimal(0)),
    ):
        await bench.rule(user_id, rule)
    events = await bench.tell(activity())
    assert len(events) == 3
    assert {row["rule_name"] for row in await bench.rows("alerts")} == {"watchlist", "big", "all"}
    with pytest.raises(Conflict):
        await bench.rule(user_id, NewRule("fourth", (), 1.0, Decimal(0)))


async def test_a_notification_goes_to_each_channel_with_the_latest_state(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    await bench.channel(user_id, "email", None)
    await bench.tell(activity(contract("A", 70), simulated=True))
    await bench.tell(activity(contract("B", 71), simulated=True))
    await bench.deliver()
    (post,), (mail,) = bench.discord.sent, bench.email.sent
    assert post.target == WEBHOOK
    assert mail.target == f"{user_id.hex[:8]}@example.org"
    assert post.title == mail.title == "[SIMULATED] AAPL: 2 unusual contracts, score 71"
    assert SIMULATED_NOTE in post.notes
    rows = await bench.rows("deliveries")
    assert {(row["channel"], row["status"], row["provider_id"]) for row in rows} == {
        ("discord", "done", "id-1"),
        ("email", "done", "id-1"),
    }
    told = await bench.rows("outbox")
    assert [row["topic"] for row in told].count("alerts.deliveries") == 2


async def test_a_webhook_that_is_gone_is_disabled_with_a_reason_and_its_waiting_deliveries_fail(
    bench: Bench,
) -> None:
    user_id = await bench.user("AAPL", "MSFT")
    await bench.channel(user_id)
    await bench.tell(activity(), activity(symbol="MSFT"))
    bench.discord.errors = [ChannelGone("the webhook does not exist any more")]
    await bench.deliver()
    (channel,) = await bench.rows("channels")
    assert (channel["enabled"], channel["reason"]) == (False, "the webhook does not exist any more")
    assert {row["status"] for row in await bench.rows("deliveries")} == {"failed"}
    assert len(bench.discord.sent) == 1
    told = [row for row in await bench.rows("outbox") if row["topic"] == "alerts.deliveries"]
    assert len(told) == 2
    await bench.tell(activity(contract("A", 99)))
    assert len(await bench.rows("deliveries")) == 2


async def test_a_new_webhook_is_not_disabled_by_the_old_ones_end(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    await bench.tell(activity())
    await bench.channel(user_id, "discord", WEBHOOK + "new")
    bench.discord.errors = [ChannelGone()]
    await bench.deliver()
    assert bench.discord.sent == []
    (channel,) = await bench.rows("channels")
    assert channel["enabled"]
    (delivery,) = await bench.rows("deliveries")
    assert delivery["last_error"] == "the channel was removed or changed"


async def test_setting_a_disabled_channel_again_enables_it(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    bench.discord.errors = [ChannelGone("gone")]
    await bench.tell(activity())
    await bench.deliver()
    row = await bench.channel(user_id)
    assert (row["enabled"], row["reason"]) == (True, None)


async def test_failures_that_pass_are_tried_again_and_a_repeat_says_so(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    bench.discord.errors = [Transient("503"), Busy(retry_after_s=1.5), OutcomeUnknown(), None]
    await bench.tell(activity())
    for _ in range(5):
        await bench.deliver()
        bench.clock.advance(30)
    assert [REPEAT_NOTE in message.notes for message in bench.discord.sent] == [False, False, False, True]
    (row,) = await bench.rows("deliveries")
    assert (row["status"], row["attempts"]) == ("done", 3)


async def test_a_database_that_fails_before_the_post_leaves_no_doubt_about_it(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    await bench.tell(activity())
    await bench.execute("alter table channels rename to elsewhere")
    await bench.deliver()
    (row,) = await bench.rows("deliveries")
    assert (row["status"], row["uncertain"], bench.discord.sent) == ("pending", False, [])
    await bench.execute("alter table elsewhere rename to channels")
    bench.clock.advance(30)
    await bench.deliver()
    (post,) = bench.discord.sent
    assert REPEAT_NOTE not in post.notes


async def test_two_rings_that_wait_out_an_outage_become_one_message(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    bench.discord.errors = [Transient(retry_after_s=60)]
    await bench.tell(activity(contract("A", 70)))
    await bench.deliver()
    await bench.tell(activity(contract("A", 85)))
    for _ in range(4):
        await bench.deliver()
        bench.clock.advance(60)
    assert [message.title for message in bench.discord.sent[1:]] == ["AAPL: 1 unusual contract, score 85"]
    rows = await bench.rows("deliveries")
    assert sorted((row["ring"], row["status"], row["last_error"]) for row in rows) == [
        (1, "failed", "a later notification of the same alert took its place"),
        (2, "done", None),
    ]


async def test_a_wait_of_days_ends_the_delivery_and_leaves_the_webhook_alone_so_long(bench: Bench) -> None:
    user_id = await bench.user("AAPL", "MSFT")
    await bench.channel(user_id)
    bench.discord.errors = [Busy("Discord asks to wait", retry_after_s=2 * 86_400)]
    await bench.tell(activity())
    await bench.deliver()
    (row,) = await bench.rows("deliveries")
    assert (row["status"], row["last_error"]) == ("failed", "gave up: Discord asks to wait")
    await bench.tell(activity(symbol="MSFT"))
    bench.clock.advance(2 * 86_400 - 1)
    await bench.deliver()
    assert len(bench.discord.sent) == 1
    bench.clock.advance(1)
    await bench.deliver()
    assert len(bench.discord.sent) == 2


async def test_a_ring_before_the_channel_moved_is_not_taken_for_one_after(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    await bench.tell(activity(contract("A", 70)))
    await bench.channel(user_id, "discord", WEBHOOK + "new")
    await bench.tell(activity(contract("A", 85)))
    await bench.channel(user_id)
    await bench.deliver()
    await bench.deliver()
    (sent,) = bench.discord.sent
    assert sent.target == WEBHOOK


async def test_a_refused_message_fails_alone(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    bench.discord.errors = [Permanent("too long")]
    await bench.tell(activity())
    await bench.deliver()
    (row,) = await bench.rows("deliveries")
    assert (row["status"], row["last_error"]) == ("failed", "too long")
    (channel,) = await bench.rows("channels")
    assert channel["enabled"]


async def test_no_event_holds_a_webhooks_secret(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id)
    await bench.tell(activity())
    await bench.deliver()
    told = await bench.rows("outbox")
    assert len(told) == 2
    assert all(b"s3cret" not in row["value"] for row in told)


async def test_mail_without_a_server_is_refused_and_old_addresses_get_nothing(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.channel(user_id, "email", None)
    bench.offer(Options(offered=("discord",)))
    with pytest.raises(ChannelNotOffered):
        await bench.channel(user_id, "email", None)
    await bench.tell(activity())
    assert await bench.rows("deliveries") == []


async def test_a_webhook_elsewhere_and_an_unknown_channel_are_refused(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    with pytest.raises(Invalid):
        await bench.channel(user_id, "discord", "https://evil.example/api/webhooks/1/" + "x" * 40)
    with pytest.raises(ChannelNotOffered):
        await bench.channel(user_id, "pigeon", "roof")
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: bench.channels.remove(ACTOR, user_id, "email", None, tx))


async def test_ringing_again_makes_an_opened_alert_unopened(bench: Bench) -> None:
    user_id = await bench.user("AAPL")
    await bench.tell(activity(contract("A", 70)))
    (row,) = await bench.rows("alerts")
    at = await bench.door.run(lambda tx: bench.engagement.open(user_id, row["alert_id"], tx))
    assert at == NOW
    await bench.tell(activity(contract("B", 71)))
    assert [row["opened_at"] for row in await bench.rows("alerts")] == [NOW]
    await bench.tell(activity(contract("A", 85)))
    assert [row["opened_at"] for row in await bench.rows("alerts")] == [None]
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: bench.engagement.open(uuid4(), row["alert_id"], tx))


async def test_retention_makes_months_ahead_and_drops_what_is_over(bench: Bench) -> None:
    await bench.user("AAPL")
    await bench.tell(activity())
    retention = Retention(
        bench.store,
        bench.confirmations,
        bench.notices,
        bench.door,
        alerts_months=13,
        deliveries_months=3,
        contracts_days=10,
    )
    await retention.run(NOW)
    await retention.run(NOW)
    assert len(await bench.rows("alerts")) == 1
    later = NOW + timedelta(days=500)
    await retention.run(later)
    assert await bench.rows("alerts") == []
    assert await bench.rows("contracts") == []
    async with bench.database.read() as tx:
        names = await tx.fetch(
            text("""
            select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
            where i.inhparent = cast('deliveries' as regclass) order by 1""")
        )
    found = {row["relname"] for row in names}
    assert found >= {f"deliveries_{suffix}" for suffix in ("202610", "202611", "202612", "default")}
    assert min(found) >= "deliveries_202607"
