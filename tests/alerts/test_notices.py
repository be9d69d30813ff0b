"""What payment and the brokerage tell becomes a notice: once, in the app and on every channel that is enabled."""

from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from services.alerts.domain.notices import PAID, TRADED, notice_of, rule_notice
from services.alerts.domain.overrides import KINDS
from services.alerts.domain.routing import Wishes
from services.alerts.domain.words import Words
from services.alerts.ports import ChannelGone
from services.alerts.service import NewRule, Preferences
from services.alerts.service.preferences import Said
from services.alerts.store.preferences import PreferenceStore
from services.alerts.workers import Retention
from shared.contracts.broker import Drift, OrderFilled, OrderFlagged, OrderRejected, PositionsDrifted
from shared.contracts.payment import (
    CardExpiring,
    PaymentDisputed,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    RenewalDue,
    SubscriptionChanged,
    TrialEnding,
)
from shared.errors import NotFound, Transient
from tests.alerts.conftest import ACTOR, NOW, Bench, activity
from tests.alerts.test_routes import Client, client

__all__ = ["client"]


def about(user: UUID, **fields: Any) -> dict[str, Any]:
    return {"id": uuid4(), "time": NOW, "user_id": user, "provider": "stripe", "reference": "in_1", **fields}


def receipt(user: UUID, **fields: Any) -> PaymentReceived:
    usual: dict[str, Any] = {"amount": Decimal("29.00"), "currency": "USD", "renewal": False, "plan": "pro"}
    return PaymentReceived(**about(user, **(usual | fields)))


USER = uuid4()
COST: dict[str, Any] = {"amount": Decimal(29), "currency": "USD"}


@pytest.mark.parametrize(
    ("event", "kind", "title", "lines"),
    [
        (receipt(USER), "receipt", "Your Openbell subscription is paid: 29.00 USD", ("Plan: pro",)),
        (
            receipt(USER, renewal=True, receipt_url="https://pay.example/r"),
            "renewed",
            "Your Openbell subscription is renewed: 29.00 USD",
            ("Plan: pro", "Receipt: https://pay.example/r"),
        ),
        (
            PaymentFailed(**about(USER, **COST, reason="The card was declined.", next_attempt_at=NOW)),
            "payment_failed",
            "Your payment of 29.00 USD did not work",
            ("The card was declined.", "It is tried again on June 2, 2025."),
        ),
        (
            PaymentFailed(**about(USER, **COST, reason="", action_required=True, pay_url="https://pay.example/3ds")),
            "payment_action_required",
            "Your payment of 29.00 USD needs you to confirm it",
            ("Pay here: https://pay.example/3ds",),
        ),
        (PaymentRefunded(**about(USER, **COST)), "refunded", "You have been refunded 29.00 USD", ()),
        (
            PaymentDisputed(**about(USER, **COST, status="opened")),
            "dispute_opened",
            "Your bank disputes a payment of 29.00 USD",
            (),
        ),
        (
            PaymentDisputed(**about(USER, **COST, status="lost")),
            "dispute_lost",
            "The dispute over 29.00 USD is closed: the money went back to you",
            (),
        ),
        (TrialEnding(**about(USER, ends_at=NOW)), "trial_ending", "Your trial ends on June 2, 2025", ()),
        (
            CardExpiring(**about(USER, brand="visa", last4="4242", expires="2025-07")),
            "card_expiring",
            "Your card (visa, ending in 4242) expires in 2025-07",
            ("Update it so that your subscription goes on.",),
        ),
        (
            RenewalDue(**about(USER, **COST, due_at=NOW, days_left=1)),
            "renewal_due",
            "Your subscription ends in 1 day: 29.00 USD renews it",
            ("Due on June 2, 2025.",),
        ),
        (
            RenewalDue(**about(USER, **COST, due_at=NOW, days_left=-2)),
            "renewal_due",
            "Your subscription is not paid: 29.00 USD keeps it",
            ("Due on June 2, 2025.",),
        ),
    ],
)
def test_a_payment_event_reads_as_a_person_would_say_it(event: Any, kind: str, title: str, lines: tuple[str, ...]):
    told = notice_of(event)
    assert (told.kind, told.title, told.lines) == (kind, title, lines)
    assert kind in KINDS  # it may have a template of its own


def test_every_kind_of_event_that_is_read_is_told_and_nothing_else() -> None:
    assert all(notice_of.dispatch(kind) is not notice_of.dispatch(object) for kind in (*PAID, *TRADED))
    with pytest.raises(TypeError):
        notice_of(SubscriptionChanged.model_construct())


def traded(user: UUID, **fields: Any) -> dict[str, Any]:
    usual = {"order_id": uuid4(), "venue": "paper", "mode": "paper"}
    return {"id": uuid4(), "time": NOW, "account_id": uuid4(), "user_id": user, **(usual | fields)}


def filled(user: UUID, **fields: Any) -> OrderFilled:
    usual: dict[str, Any] = {
        "fill_id": "1",
        "symbol": "AAPL",
        "side": "buy",
        "quantity": Decimal(10),
        "fee": Decimal(0),
    }
    return OrderFilled(**traded(user, **(usual | {"price": Decimal("100.0200"), "at": NOW, "whole": True} | fields)))


def drifted(user: UUID) -> PositionsDrifted:
    about = {key: value for key, value in traded(user).items() if key not in {"order_id", "mode"}}
    return PositionsDrifted(**about, drifts=(Drift(symbol="AAPL", ours=Decimal(10), venue=Decimal("7.50")),))


@pytest.mark.parametrize(
    ("event", "kind", "title", "lines"),
    [
        (filled(USER), "order_filled", "Bought 10 AAPL at 100.02 (paper)", ("Nothing of the order is left.",)),
        (
            filled(USER, quantity=Decimal(6), filled=Decimal(10), average_price=Decimal("100.01000000")),
            "order_filled",
            "Bought 10 AAPL at 100.01 (paper)",
            ("Nothing of the order is left.",),
        ),
        (
            filled(USER, side="sell", symbol="BTC/USD", quantity=Decimal("0.00000001"), mode="live", whole=False),
            "order_part_filled",
            "Sold 0.00000001 BTC/USD at 100.02 (live)",
            ("More of the order is left.",),
        ),
        (
            OrderRejected(**traded(USER), codes=("COLLAR",), reasons=("the limit is too far from the market",)),
            "order_rejected",
            "Your order was refused at paper (paper)",
            ("the limit is too far from the market",),
        ),
        (
            OrderFlagged(**traded(USER), code="OVERFILL", message="more was filled than was ordered"),
            "order_flagged",
            "Look at your order at paper (paper)",
            ("more was filled than was ordered",),
        ),
        (
            drifted(USER),
            "positions_drifted",
            "Your positions were put right: paper holds others",
            ("AAPL: 7.5, not 10.",),
        ),
    ],
)
def test_a_trade_reads_as_a_person_would_say_it(event: Any, kind: str, title: str, lines: tuple[str, ...]):
    told = notice_of(event)
    assert (told.kind, told.title, told.lines) == (kind, title, lines)
    assert kind in KINDS  # it may have a template of its own


async def test_of_an_orders_parts_the_first_is_told_and_what_makes_it_whole(bench: Bench) -> None:
    user, order = await bench.user(), uuid4()
    await bench.channel(user)
    parts = [filled(user, order_id=order, quantity=Decimal(number), whole=number == 4) for number in range(1, 5)]
    await bench.handle(bench.telling.tell, parts[:2])
    await bench.deliver()
    await bench.handle(bench.telling.tell, parts[2:])
    await bench.handle(bench.telling.tell, [filled(user, quantity=Decimal(9), whole=False)])
    for _ in range(3):
        bench.clock.advance(600)
        await bench.deliver()
    assert sorted(one.title for one in bench.discord.sent) == [
        "Bought 1 AAPL at 100.02 (paper)",
        "Bought 4 AAPL at 100.02 (paper)",
        "Bought 9 AAPL at 100.02 (paper)",
    ]
    assert len(await bench.rows("notices")) == 3


def test_coins_keep_their_digits() -> None:
    assert Words().money(Decimal("0.01250000"), "BTC") == "0.0125 BTC"
    assert Words().money(Decimal("1234.5"), "USD") == "1,234.50 USD"
    assert Words().money(Decimal(1500), "JPY") == "1,500 JPY"
    assert Words().money(Decimal("1.5"), "KWD") == "1.500 KWD"
    assert Words().money(Decimal("1.234"), "KWD") == "1.234 KWD"
    assert Words().money(Decimal("123456789012.123456789012345678"), "X") == "123,456,789,012.123456789012345678 X"
    assert Words().money(Decimal(10**38), "X") == f"{10**38:,}.00 X"


async def test_a_notice_goes_out_once_on_every_enabled_channel(bench: Bench) -> None:
    user, other = await bench.user(), await bench.user()
    await bench.channel(user)
    await bench.channel(user, "email", None)
    await bench.channel(other)
    woken = bench.wakes
    await bench.handle(bench.telling.tell, [receipt(user)])
    assert bench.wakes == woken + 1
    bench.discord.errors = [Transient("away")]
    await bench.deliver()
    bench.clock.advance(600)
    await bench.deliver()
    await bench.deliver()
    titles = [one.title for one in (*bench.discord.sent, *bench.email.sent)]
    assert titles == ["Your Openbell subscription is paid: 29.00 USD"] * 3
    assert len(bench.discord.sent) == 2
    assert bench.discord.sent[0].delivery_id == bench.discord.sent[1].delivery_id
    assert {row["status"] for row in await bench.rows("notice_deliveries")} == {"done"}


async def test_a_notice_has_its_users_numbers_and_days_and_so_has_one_that_a_rule_asked_for(bench: Bench) -> None:
    german, plain = await bench.user(settings={"timezone": "Pacific/Auckland"}), await bench.user()
    await bench.channel(german)
    said = Said(Wishes(timezone="UTC"), locale="de_DE")
    preferences = Preferences(PreferenceStore(), clock=bench.clock, new_id=uuid4)
    await bench.door.run(lambda tx: preferences.put(ACTOR, german, said, tx))
    rule = NewRule("trials", (), 0, Decimal(0), "payments", {"field": "event", "op": "==", "value": "trial.ending"})
    await bench.rule(german, rule)
    late = NOW + timedelta(hours=9, minutes=40)  # the next day in Auckland
    for user in (german, plain):
        events = [receipt(user, amount=Decimal("1234.5")), TrialEnding(**about(user, ends_at=late))]
        await bench.handle(bench.telling.tell, events)
        await bench.handle(bench.rules.hear, events)
    titles = {(row["user_id"], row["title"]) for row in await bench.rows("notices")}
    assert titles == {
        (german, "Your Openbell subscription is paid: 1.234,50 USD"),
        (german, "Your trial ends on 3. Juni 2025"),
        (german, "trials: Your trial ends on 3. Juni 2025"),
        (plain, "Your Openbell subscription is paid: 1,234.50 USD"),
        (plain, "Your trial ends on June 3, 2025"),
    }
    await bench.deliver()
    assert {one.words for one in bench.discord.sent} == {Words("de_DE", "Pacific/Auckland")}


def test_the_fields_that_a_rule_tells_are_written_as_its_user_writes_them() -> None:
    fields = {"event": "x", "plan_count": Decimal("1234.50"), "ends_at": NOW, "sizes": (Decimal("1.5"), Decimal(2))}
    changed = SubscriptionChanged.model_construct()
    assert rule_notice("r", changed, fields, Words("de_DE", "Asia/Tokyo")).lines == (
        "plan count: 1.234,5",
        "ends at: 2. Juni 2025, 23:30 JST",
        "sizes: 1,5, 2",
        "Your rule r asked for this.",
    )


async def test_a_channel_that_is_gone_takes_notices_and_alerts_with_it(bench: Bench) -> None:
    user = await bench.user("AAPL")
    await bench.channel(user)
    await bench.handle(bench.telling.tell, [receipt(user)])
    bench.discord.errors = [Transient("away"), ChannelGone("the webhook does not exist any more")]
    await bench.workers[2].turn()  # notices to Discord
    await bench.workers[2].idle()
    await bench.tell(activity())
    await bench.workers[0].turn()  # alerts to Discord
    await bench.workers[0].idle()
    bench.clock.advance(600)
    await bench.deliver()
    assert [row["status"] for row in await bench.rows("notice_deliveries")] == ["failed"]
    assert [row["status"] for row in await bench.rows("deliveries")] == ["failed"]
    assert [row["enabled"] for row in await bench.rows("channels")] == [False]
    assert len(bench.discord.sent) == 2


async def test_notices_are_listed_newest_first_and_opened_by_their_user_only(client: Client) -> None:
    bench = client.bench
    user, other = await bench.user(), await bench.user()
    await bench.channel(user)
    for number in range(3):
        await bench.handle(bench.telling.tell, [receipt(user, amount=Decimal(number + 1))])
        bench.clock.advance(1)
        await bench.deliver()
    first = (await client("GET", f"/api/alerts/{user}/notices?limit=2", user)).json()
    assert [one["title"][-8:] for one in first["notices"]] == ["3.00 USD", "2.00 USD"]
    assert first["notices"][0]["deliveries"][0]["status"] == "sent"
    rest = await client("GET", f"/api/alerts/{user}/notices", user, params={"before": first["next"]})
    assert len(rest.json()["notices"]) == 1
    notice = first["notices"][0]["id"]
    assert (await client("POST", f"/api/alerts/{other}/notices/{notice}/opened", other)).status_code == 404
    assert (await client("GET", f"/api/alerts/{user}/notices", other)).status_code == 403
    assert (await client("POST", f"/api/alerts/{user}/notices/{notice}/opened", user)).status_code == 204
    listed = (await client("GET", f"/api/alerts/{user}/notices", user)).json()["notices"]
    assert [one["opened_at"] is not None for one in listed] == [True, False, False]
    with pytest.raises(NotFound):
        await bench.door.run(lambda tx: bench.engagement.open(user, uuid4(), tx))


async def test_old_notices_are_forgotten_with_their_deliveries(bench: Bench) -> None:
    user = await bench.user()
    await bench.channel(user)
    await bench.handle(bench.telling.tell, [receipt(user)])
    retention = Retention(
        bench.store,
        bench.confirmations,
        bench.notices,
        bench.door,
        alerts_months=1,
        deliveries_months=1,
        contracts_days=1,
    )
    await retention.run(NOW + timedelta(days=30))
    assert len(await bench.rows("notices")) == 1
    await retention.run(NOW + timedelta(days=32))
    assert await bench.rows("notices") == await bench.rows("notice_deliveries") == []
