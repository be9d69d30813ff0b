"""A plan that was paid for with coins changes to the year and back: what is left becomes time, no money moves."""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.payment.domain.proration import moved_end
from services.payment.service.audit import Actor, Audit
from services.payment.service.catalogue import Catalogue
from services.payment.service.changes import Changes, NotNow, SamePlan
from services.payment.store.mirror import MirrorStore
from shared.clock import new_id
from shared.db import Database, Row
from tests.payment.crypto_bench import PRO, TEAM
from tests.payment.evm_town import USDC, Town, built

MONTHLY, YEARLY = PRO, TEAM  # 29 USD a month, 99 USD a year
DAY = timedelta(days=1)


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> Town:
    return await built(open_database("payment"))


def changes_of(town: Town) -> Changes:
    bench = town.bench
    audit = Audit(bench.door, clock=bench.clock, new_id=new_id)
    catalogue = Catalogue(bench.plans, MirrorStore())
    return Changes(
        bench.subscriptions, bench.subscription_store, catalogue, door=bench.door, audit=audit, clock=bench.clock
    )


async def pay(town: Town, invoice: Row) -> None:
    await town.evm.call(town.usdc, "transfer", invoice["address"], int(invoice["amount"]))
    await town.confirm()


def later(town: Town, time: timedelta) -> None:
    town.evm.travel(max(town.bench.clock.now, town.evm.time) + time)
    town.evm.mine()
    town.bench.clock.now = town.evm.time


async def subscribed(town: Town) -> tuple[Row, Actor]:
    """Return the paid invoice of a month, and who paid it."""
    invoice = await town.bench.invoice("USDC")
    await pay(town, invoice)
    return invoice, Actor(invoice["user_id"])


async def has(town: Town, actor: Actor) -> dict[str, Any]:
    async with town.bench.database.read() as tx:
        return await town.bench.subscriptions.shown(tx, actor.user_id)


async def test_a_month_becomes_a_year_and_back_at_what_the_preview_said(town: Town) -> None:
    bench = town.bench
    changes = changes_of(town)
    _, actor = await subscribed(town)
    first: datetime = (await has(town, actor))["current_period_end"]
    later(town, 10 * DAY)
    ends = [first]
    for old, new in ((MONTHLY, YEARLY), (YEARLY, MONTHLY)):
        preview = await changes.preview(actor, new.name, None)
        assert (preview.due_now_minor, preview.proration_minor, preview.currency) == (0, 0, "USD")
        assert (await has(town, actor))["plan"] == old.name, "a preview changes nothing"
        changed = (await changes.change_plan(actor, new.name, None)).subscription
        ends.append(changed["current_period_end"])
        assert (changed["plan"], changed["entitlements"]) == (new.name, tuple(sorted(new.entitlements)))
        assert ends[-1] == preview.period_end == moved_end(bench.clock.now, ends[-2], old, new)
        with pytest.raises(SamePlan):
            await changes.preview(actor, new.name, None)
    left = (first - bench.clock.now) / DAY
    assert (ends[1] - bench.clock.now) / DAY == pytest.approx(left * 12 * 29 / 99)
    assert timedelta() <= first - ends[2] < timedelta(seconds=1), "there and back gives nobody time, and takes none"
    assert bench.books() == {"USDC": Decimal(29)}, "no money has moved"
    assert len(await bench.told("payment.payments")) == 1
    told = [one["plan"] for one in await bench.told("payment.subscriptions")]
    assert told == ["pro", "team", "pro"]
    audited = [(one["action"], one["actor"]) for one in await bench.told("api.audit")]
    assert audited[1:] == [("change-plan.subscription", str(actor.user_id))] * 2


async def test_after_the_change_the_new_plan_is_what_is_renewed_and_its_money_is_booked(town: Town) -> None:
    bench = town.bench
    changes = changes_of(town)
    _, actor = await subscribed(town)
    changed = (await changes.change_plan(actor, "team", None)).subscription
    renewal = await bench.invoice("USDC", user=actor.user_id, plan="team")
    assert int(renewal["amount"]) == 99 * USDC
    await pay(town, renewal)
    renewed = await has(town, actor)
    assert (renewed["plan"], renewed["id"]) == ("team", changed["id"])
    assert 365 * DAY <= renewed["current_period_end"] - changed["current_period_end"] <= 366 * DAY
    assert bench.books() == {"USDC": Decimal(29 + 99)}
    assert [one["renewal"] for one in await bench.told("payment.payments")] == [False, True]


async def test_what_is_paid_for_the_plan_before_the_change_is_kept_and_counts_once_it_is_changed_back(
    town: Town,
) -> None:
    bench = town.bench
    changes = changes_of(town)
    _, actor = await subscribed(town)
    open_one = await bench.invoice("USDC", user=actor.user_id)
    changed = (await changes.change_plan(actor, "team", None)).subscription
    await pay(town, open_one)
    row = await bench.get(open_one)
    assert (row["state"], row["problem"], row["granted_until"]) == ("paid", "ALREADY_SUBSCRIBED", None)
    assert bench.books() == {"USDC": Decimal(58)}, "the coins are ours, and the ledger says so"
    assert (await has(town, actor))["current_period_end"] == changed["current_period_end"]
    town.evm.mine(8)
    await town.round()
    assert [one["final"] for one in await bench.rows("select final from crypto_receipts")] == [True, True]
    back = (await changes.change_plan(actor, "pro", None)).subscription
    await town.round()
    row = await bench.get(open_one)
    assert (row["problem"], row["granted_from"]) == (None, back["current_period_end"])
    assert (await has(town, actor))["current_period_end"] == row["granted_until"]
    await town.round()
    assert bench.books() == {"USDC": Decimal(58)}
    assert len(await bench.told("payment.payments")) == 2


async def test_a_payment_that_is_due_has_to_come_before_a_change(town: Town) -> None:
    _, actor = await subscribed(town)
    await town.bench.execute("update subscriptions set status = 'past_due'")
    for asked in (changes_of(town).preview, changes_of(town).change_plan):
        with pytest.raises(NotNow):
            await asked(actor, "team", None)
    assert (await has(town, actor))["plan"] == "pro"
