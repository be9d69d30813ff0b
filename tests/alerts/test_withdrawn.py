"""What waits is judged anew when it goes out: who has switched it off or silenced it meanwhile gets nothing."""

from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from services.alerts.domain.routing import ANY, Quiet, Wishes
from services.alerts.service import NewRule
from services.alerts.service.silences import NewSilence, Silences
from services.alerts.store.silences import SilenceStore
from shared.clock import new_id
from shared.errors import Transient
from shared.work import OutcomeUnknown
from tests.alerts.conftest import ACTOR, NOW, Bench, activity
from tests.alerts.test_notices import filled, receipt
from tests.alerts.test_preferences import wish
from tests.alerts.test_routes import Client, client

__all__ = ["client"]

QUIET = Quiet(time(14), time(15))
END = NOW + timedelta(minutes=30)


async def silence(bench: Bench, user: UUID, **names: Any) -> None:
    silences = Silences(SilenceStore(), clock=bench.clock, new_id=new_id)
    named: dict[str, Any] = {"kind": None, "symbol": None, "rule_id": None, "critical": None} | names
    asked = NewSilence(**named, starts_at=None, ends_at=NOW + timedelta(days=1), comment="enough")
    await bench.door.run(lambda tx: silences.add(ACTOR, user, asked, tx))


async def outcomes(bench: Bench) -> list[tuple[str, str | None]]:
    rows = [*await bench.rows("deliveries"), *await bench.rows("notice_deliveries")]
    return sorted((row["status"], row["last_error"]) for row in rows)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("off", ("suppressed", "switched off in your preferences")),
        ("digest", ("digested", "your preferences say: in the digest")),
    ],
)
async def test_what_waited_for_quiet_hours_heeds_a_choice_that_was_made_meanwhile(
    bench: Bench, choice: Any, told: tuple[str, str]
) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    await wish(bench, user, Wishes(quiet=QUIET))
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    await wish(bench, user, Wishes(choices={(ANY, "discord"): choice}))
    bench.clock.now = END
    await bench.deliver()
    assert bench.discord.sent == []
    assert await outcomes(bench) == [told, told]
    assert {row["settled_at"] for row in await bench.rows("deliveries")} == {END}


async def test_what_is_tried_again_heeds_a_silence_that_was_added_meanwhile(bench: Bench) -> None:
    user = await bench.user("AAPL", "MSFT")
    await bench.channel(user)
    await bench.tell(activity(), activity(symbol="MSFT"))
    bench.discord.errors = [Transient("away")] * 2
    for _ in range(2):
        await bench.deliver()
    await silence(bench, user, symbol="AAPL")
    bench.clock.advance(60)
    for _ in range(2):
        await bench.deliver()
    assert len(bench.discord.sent) == 3
    assert await outcomes(bench) == [("done", None), ("suppressed", "silenced until 2025-06-03 14:30 UTC")]


async def test_what_may_have_been_sent_and_is_not_wanted_any_more_is_unknown_and_not_sent_again(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.tell(activity())
    bench.discord.errors = [OutcomeUnknown("hung up")]
    await bench.deliver()
    await wish(bench, user, Wishes(choices={("activity", ANY): "off"}))
    bench.clock.advance(60)
    await bench.deliver()
    assert len(bench.discord.sent) == 1
    assert await outcomes(bench) == [("unknown", "switched off in your preferences")]


async def test_silences_by_symbol_and_by_rule_hold_for_notices_too(bench: Bench) -> None:
    user = await bench.user()
    await bench.channel(user)
    expression = {"field": "event", "op": "==", "value": "order.filled"}
    rule = await bench.rule(user, NewRule("Fills", (), 0, Decimal(0), "orders", expression))
    await silence(bench, user, symbol="AAPL")
    await silence(bench, user, rule_id=rule["rule_id"])
    for symbol in ("AAPL", "MSFT"):
        event = filled(user, symbol=symbol)
        await bench.handle(bench.telling.tell, [event])
        await bench.handle(bench.rules.hear, [event])
    await bench.deliver()
    assert [message.title[:14] for message in bench.discord.sent] == ["Bought 10 MSFT"]
    assert [status for status, _ in await outcomes(bench)] == ["done", "suppressed", "suppressed", "suppressed"]


async def test_a_test_of_a_channel_goes_out_whatever_its_user_wishes(bench: Bench) -> None:
    user = await bench.user()
    row = await bench.channel(user)
    await wish(bench, user, Wishes(choices={(ANY, ANY): "off"}))
    notice_id = new_id()
    notice = {"user_id": user, "kind": "test", "title": "A test", "lines": [], "at": NOW, "rule_id": None}
    async with bench.database.transaction() as tx:
        await bench.notices.add(tx, [{"notice_id": notice_id, **notice}], NOW)
        await bench.router.ring_target(notice_id, row, NOW, tx)
    await bench.deliver()
    assert [message.title for message in bench.discord.sent] == ["A test"]


async def test_what_a_provider_confirmed_is_delivered_in_the_log(client: Client) -> None:
    bench = client.bench
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.tell(activity())
    await bench.handle(bench.telling.tell, [receipt(user)])
    await bench.deliver()
    told = ("delivered_at", "opened_at", "clicked_at")
    for table in ("deliveries", "notice_deliveries"):
        await bench.execute(f"update {table} set " + ", ".join(f"{name} = '2025-06-02 14\\:30Z'" for name in told))
    logged = (await client("GET", f"/api/alerts/{user}/deliveries", user)).json()["deliveries"]
    assert [one["state"] for one in logged] == ["delivered"] * 2
    assert {datetime.fromisoformat(one[name]) for one in logged for name in told} == {NOW}
    page = (await client("GET", f"/api/alerts/{user}", user)).json()
    assert page["alerts"][0]["deliveries"][0]["status"] == "delivered"
    stats = (await client("GET", f"/api/alerts/{user}/stats", user)).json()
    assert stats["channels"]["discord"]["states"] == {"delivered": 2}
