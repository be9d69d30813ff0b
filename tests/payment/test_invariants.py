"""What always has to hold: broken on purpose, it is found, counted, mended where it can be."""

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import text

from services.payment.domain.ledger import of_balance_transaction, of_hand
from services.payment.domain.money import Money
from services.payment.service.invariants import WINDOW, Invariants
from shared.db import Database, Tx
from shared.errors import Transient
from tests.payment.ledger_bench import DAY, NOW, Bench, moved, official

LONG_AGO = NOW - timedelta(hours=1)


class Stripe:
    """What Stripe says of its balance, and what was asked of it."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.asked: list[datetime] = []
        self.wanted: list[tuple[str, str]] = []
        self.error: Exception | None = None

    async def movements(self, since: datetime) -> AsyncIterator[Mapping[str, Any]]:
        self.asked.append(since)
        if self.error is not None:
            raise self.error
        for one in self.found:
            if one["created"] >= since.timestamp():
                yield one

    async def want(self, tx: Tx, objects: Sequence[tuple[str, str]]) -> None:
        del tx
        self.wanted += objects


@pytest.fixture
def bench(open_database: Callable[[str], Database]) -> Bench:
    return Bench(open_database("payment"))


@pytest.fixture
def stripe() -> Stripe:
    return Stripe()


@pytest.fixture
def invariants(bench: Bench, stripe: Stripe) -> Invariants:
    return Invariants(
        bench.ledger_store,
        bench.store,
        bench.ledger,
        bench.subscriptions,
        bench.door,
        movements=stripe.movements,
        want=stripe.want,
        clock=bench.clock,
    )


def gauge(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"openbell_payment_{name}", labels)


async def book(bench: Bench, *found: dict[str, Any]) -> None:
    async with bench.database.transaction() as tx:
        for one in found:
            await bench.ledger.add(tx, of_balance_transaction(one))


async def execute(bench: Bench, *statements: str) -> None:
    async with bench.database.transaction() as tx:
        for statement in statements:
            await tx.execute(text(statement))


# The ledger adds up


async def test_a_ledger_that_adds_up_is_zero_in_each_currency(bench: Bench, invariants: Invariants) -> None:
    await book(bench, moved(2900, 114), moved(1000, 0, id="txn_2", currency="jpy"))
    assert await invariants.adds_up() == 0
    assert gauge("ledger_unbalanced") == 0


async def test_a_ledger_that_somebody_broke_by_force_is_found(
    bench: Bench, invariants: Invariants, caplog: pytest.LogCaptureFixture
) -> None:
    await book(bench, moved(2900, 114))
    await execute(
        bench,
        "alter table ledger_postings disable trigger user",
        "update ledger_postings set amount = amount + 1 where account = 'assets:stripe'",
        "alter table ledger_postings enable trigger user",
    )
    with caplog.at_level(logging.ERROR):
        assert await invariants.adds_up() == 1
    assert gauge("ledger_unbalanced") == 1
    (record,) = [one for one in caplog.records if one.message == "payment_invariant_broken"]
    assert vars(record)["amount"] == "1"


# The ledger is Stripe's


async def test_what_both_say_the_same_of_is_no_difference(bench: Bench, invariants: Invariants, stripe: Stripe) -> None:
    stripe.found = [
        moved(2900, 114, at=LONG_AGO),
        moved(-500, 0, "refund", LONG_AGO, id="txn_2"),
        moved(-2900, 1500, "dispute", LONG_AGO, id="txn_3"),
        moved(-50, 0, "fee", LONG_AGO, id="txn_4"),
        moved(0, 0, "fee", LONG_AGO, id="txn_5"),  # moves nothing, so it is no entry
        moved(0, 30, "fee", LONG_AGO, id="txn_6"),
    ]
    await book(bench, *stripe.found)
    async with bench.database.transaction() as tx:
        await bench.ledger.add(tx, of_hand("manual/1", Money(1, "USD", 2), at=LONG_AGO, about="manual/1"))
    assert set((await invariants.is_stripes(WINDOW)).values()) == {0}
    assert stripe.asked == [NOW - WINDOW]


async def test_what_a_missing_one_came_from_is_asked_for_and_what_is_missing_still_is_added(
    bench: Bench, invariants: Invariants, stripe: Stripe
) -> None:
    stripe.found = [moved(-900, 0, "refund", LONG_AGO, id="txn_9", source="re_1")]
    for balances in ({}, {("assets:stripe", "USD"): -900, ("income:refunds", "USD"): 900}):
        assert await invariants.is_stripes(WINDOW) == {"missing": 1, "strange": 0, "amounts": 0}
        assert gauge("ledger_stripe_differences", found="missing") == 1
        assert stripe.wanted == [("refund", "re_1")]
        assert await bench.balances() == balances
    assert await invariants.is_stripes(WINDOW) == {"missing": 0, "strange": 0, "amounts": 0}
    assert gauge("ledger_stripe_differences", found="missing") == 0
    assert stripe.wanted == [("refund", "re_1")]


async def test_a_movement_of_this_minute_is_left_to_what_it_came_from_without_an_alarm(
    bench: Bench, invariants: Invariants, stripe: Stripe
) -> None:
    user = await bench.user()
    stripe.found = [moved(2900, 114, at=NOW - timedelta(seconds=30), id="txn_1", source="ch_1")]
    for _ in range(2):
        assert set((await invariants.is_stripes(WINDOW)).values()) == {0}
    assert set(stripe.wanted) == {("charge", "ch_1")}
    assert not await bench.balances()
    paid = official("charge", id="ch_1", customer="cus_1", status="succeeded", balance_transaction=stripe.found[0])
    await bench.apply("charge", paid)
    bench.clock.advance(3600)
    assert set((await invariants.is_stripes(WINDOW)).values()) == {0}
    assert [(row["key"], row["user_id"]) for row in await bench.rows("select * from ledger_entries")] == [
        ("stripe/txn_1", user)
    ]


async def test_a_movement_that_came_from_nothing_is_added_at_once(
    bench: Bench, invariants: Invariants, stripe: Stripe
) -> None:
    stripe.found = [moved(-50, 0, "fee", NOW - timedelta(seconds=30), id="txn_4", source=None)]
    assert set((await invariants.is_stripes(WINDOW)).values()) == {0}
    assert (await bench.balances())["expenses:fees", "USD"] == 50


@pytest.mark.parametrize("change", [{"net": 2787, "fee": 113}, {"currency": "eur"}, {"amount": 2901, "net": 2787}])
async def test_other_amounts_are_found_and_left_to_a_person(
    bench: Bench, invariants: Invariants, stripe: Stripe, change: dict[str, Any]
) -> None:
    told = moved(2900, 114, at=LONG_AGO)
    await book(bench, told)
    stripe.found = [told | change]
    before = await bench.balances()
    assert (await invariants.is_stripes(WINDOW))["amounts"] == 1
    assert gauge("ledger_stripe_differences", found="amounts") == 1
    assert await bench.balances() == before


async def test_an_entry_that_stripe_knows_nothing_of_is_strange(
    bench: Bench, invariants: Invariants, stripe: Stripe
) -> None:
    old = moved(1, 0, at=NOW - 10 * DAY, id="txn_old")
    stripe.found = [moved(2900, 114, at=LONG_AGO)]
    await book(bench, *stripe.found, old, moved(5, 0, at=LONG_AGO, id="txn_forged"))
    assert await invariants.is_stripes(WINDOW) == {"missing": 0, "strange": 1, "amounts": 0}


async def test_once_a_day_the_look_goes_back_further(bench: Bench, invariants: Invariants, stripe: Stripe) -> None:
    for hour, minute in ((2, 45), (3, 0), (3, 15)):
        await invariants.run(bench.clock.now.replace(hour=hour, minute=minute))
    assert [(NOW - since).days for since in stripe.asked] == [3, 35, 3]


async def test_stripe_away_keeps_nobody_from_the_other_looks(
    bench: Bench, invariants: Invariants, stripe: Stripe
) -> None:
    stripe.error = Transient("Stripe does not answer")
    bench.clock.advance(60)
    with pytest.raises(Transient):
        await invariants.run(bench.clock.now)
    now = bench.clock.now.timestamp()
    looked = [
        gauge("invariant_checked_timestamp_seconds", invariant=name)
        for name in ("ledger_adds_up", "ledger_is_stripes", "told_right")
    ]
    assert looked[0] == looked[2] == now
    assert looked[1] != now


# What is told is what holds


async def test_entitlements_told_wrong_are_told_again(bench: Bench, invariants: Invariants) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    assert await invariants.told_right() == 0
    await execute(bench, "update subscriptions set told = jsonb_set(told, '{entitlements}', '[\"team\"]')")
    assert await invariants.told_right() == 1
    assert gauge("entitlements_told_wrong") == 1
    ((name, body),) = await bench.told()
    assert (name, body["entitlements"], body["version"]) == ("subscription.changed", ["pro"], 2)
    assert await invariants.told_right() == 0


async def test_access_that_is_told_though_all_is_over_is_taken_back(bench: Bench, invariants: Invariants) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await execute(bench, "update subscriptions set status = 'canceled'")
    assert await invariants.told_right() == 1
    ((_, body),) = await bench.told()
    assert (body["status"], body["entitlements"]) == ("canceled", [])


async def test_what_the_clock_has_just_ended_is_left_to_the_job_that_tells_it(
    bench: Bench, invariants: Invariants
) -> None:
    user = await bench.user()
    await bench.subscribed(user)
    await execute(
        bench, "update subscriptions set cancel_at_period_end = true, told = told || '{\"cancel_at_period_end\": true}'"
    )
    bench.clock.now = NOW + 30 * DAY + timedelta(minutes=2)
    assert await invariants.told_right() == 0
    bench.clock.advance(600)
    assert await invariants.told_right() == 1
