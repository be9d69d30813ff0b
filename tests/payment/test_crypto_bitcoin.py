"""Payment on Bitcoin, against a stand-in for Esplora whose chain is reorganised and whose mempool forgets."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.payment.adapters.esplora import GENESIS, Esplora
from services.payment.domain.chains import Chain
from services.payment.ports import WrongChain
from services.payment.service.audit import Actor
from services.payment.service.crypto import TooManyInvoices
from shared.db import Database
from shared.errors import Transient
from tests.fakes.esplora import FakeEsplora
from tests.payment.bitcoin_town import FINAL, NEEDED, NOW, OURS, PRICE, SHARED, Town, town_on
from tests.payment.crypto_bench import Bench


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> AsyncGenerator[Town]:
    async with town_on(open_database("payment")) as built:
        yield built


async def test_a_payment_is_seen_in_the_mempool_then_confirmed_then_paid(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    assert int(invoice["amount"]) == PRICE
    town.esplora.send({invoice["address"]: PRICE})
    await bench.round()
    assert await bench.state(invoice) == "seen"
    await town.mine()
    assert await bench.state(invoice) == "confirming"
    await town.mine()
    assert await bench.state(invoice) == "paid"
    assert await bench.history(invoice) == ["seen", "confirming", "paid"]
    assert await bench.subscription(invoice["user_id"]) is not None
    before = await bench.rows("select * from crypto_invoices")
    await bench.round()
    await bench.round()
    assert await bench.rows("select * from crypto_invoices") == before
    assert [one.kind for one in bench.booked] == ["received"], "each round looks again, and books nothing again"
    assert len(await bench.told("payment.payments")) == 1


async def test_two_outputs_of_one_transaction_are_two_receipts(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    town.esplora.send({invoice["address"]: PRICE - 1}, {"elsewhere": 5}, {invoice["address"]: 1})
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "paid"
    assert [row["idx"] for row in await bench.rows("select idx from crypto_receipts order by idx")] == [0, 2]


async def test_a_replaced_transaction_counts_no_more_and_its_replacement_does(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    first = town.esplora.send({invoice["address"]: PRICE})
    await bench.round()
    town.esplora.replace(first, {invoice["address"]: PRICE - 500})
    await bench.round()
    row = await bench.get(invoice)
    assert (row["state"], int(row["received"])) == ("seen", PRICE - 500)
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "seen", "the first one may still come back"
    await town.pass_time(3601)
    assert await bench.state(invoice) == "paid_partial"
    assert await bench.subscription(invoice["user_id"]) is None


async def test_a_payment_that_is_taken_out_of_a_block_is_seen_again_and_counted_once(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    town.esplora.send({invoice["address"]: PRICE})
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "paid"
    town.esplora.reorganise(NEEDED)
    await bench.round()
    assert await bench.state(invoice) == "seen"
    await town.mine(NEEDED + 1)
    assert await bench.state(invoice) == "paid"
    assert await bench.history(invoice) == ["paid", "seen", "paid"]
    assert bench.books() == {"BTC": Decimal("0.00029000")}
    assert len(await bench.told("payment.subscriptions")) == 1


async def test_a_partial_payment_may_be_completed_until_the_lock_ends(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    town.esplora.send({invoice["address"]: 9_000})
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "paid_partial"
    town.esplora.send({invoice["address"]: 20_000})
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "paid"


async def test_more_than_the_amount_is_paid_over_and_grants_one_period(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    town.esplora.send({invoice["address"]: PRICE * 3})
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "paid_over"
    subscription = await bench.subscription(invoice["user_id"])
    assert subscription is not None
    assert subscription["current_period_end"] - subscription["current_period_start"] == timedelta(days=31)


@pytest.mark.parametrize(("rate", "granted"), [(100_000, True), (99_000, True), (98_900, False)])
async def test_a_late_payment_counts_if_it_is_worth_the_price_by_then(town: Town, rate: int, granted: bool):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    await town.pass_time(901)
    assert await bench.state(invoice) == "expired"
    bench.rates._usd["BTC"] = Decimal(rate)
    town.esplora.send({invoice["address"]: PRICE})
    await town.mine(NEEDED)
    await bench.round()
    assert await bench.state(invoice) == "paid_late"
    assert (await bench.subscription(invoice["user_id"]) is not None) == granted
    assert len(await bench.told("payment.payments")) == granted
    bench.rates._usd["BTC"] = Decimal(1)
    await town.mine(FINAL)
    assert (await bench.subscription(invoice["user_id"]) is not None) == granted, "decided once"


async def test_a_late_payment_that_is_assigned_after_the_hold_is_judged_by_its_worth_and_grants(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    await town.pass_time(8 * 86_400)
    assert (await bench.get(invoice))["held"] is False
    tx = town.esplora.send({OURS[1]: PRICE})  # which is not the invoice's
    await bench.tell(invoice, tx)
    await town.mine(NEEDED)
    chain, actor = bench.chains[0][0].name, Actor(uuid4())
    await bench.door.run(lambda one: bench.invoices.assign(actor, (chain, tx, 0), invoice["id"], one))
    await town.mine(FINAL)
    await bench.round()
    row = await bench.get(invoice)
    assert (row["state"], row["worth_usd"]) == ("paid_late", Decimal("29.00"))
    assert await bench.subscription(invoice["user_id"]) is not None
    assert bench.books() == {"BTC": Decimal("0.00029000")}


async def test_a_payment_seen_in_time_and_mined_late_is_in_time(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    town.esplora.send({invoice["address"]: PRICE})
    await bench.round()
    await town.pass_time(3000)
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "paid"


async def test_an_address_is_given_to_the_next_customer_only_when_no_late_payment_is_waited_for(town: Town):
    bench = town.bench
    given_out = [await bench.invoice("BTC") for _ in OURS]
    assert {row["address"] for row in given_out} == set(OURS)
    with pytest.raises(Transient, match="in use"):
        await bench.invoice("BTC")
    await town.pass_time(7 * 86_400 + 901)
    again = await bench.invoice("BTC")
    town.esplora.send({again["address"]: PRICE})
    await town.mine(NEEDED)
    assert await bench.state(again) == "paid"
    assert await bench.state(given_out[0]) == "expired"


async def test_invoices_made_at_once_share_no_address_and_no_user_makes_too_many(town: Town):
    bench = town.bench
    made = await asyncio.gather(*(bench.invoice("BTC") for _ in OURS))
    assert {row["address"] for row in made} == set(OURS)
    await town.pass_time(7 * 86_400 + 901)
    user, other = uuid4(), Chain.model_validate(bench.chains[0][0].model_dump() | {"shared_address": SHARED})
    shared = Bench(bench.database, bench.clock, [(other, bench.chains[0][1])], {"BTC": Decimal(100_000)})
    ended = await asyncio.gather(*(shared.invoice("BTC", user=user) for _ in range(6)), return_exceptions=True)
    rows = [one for one in ended if not isinstance(one, BaseException)]
    assert len({(row["address"], row["amount"]) for row in rows}) == len(rows) == 3
    assert {type(one) for one in ended if isinstance(one, BaseException)} == {TooManyInvoices}


async def test_a_payment_made_while_nobody_looked_is_found_afterwards(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    town.esplora.send({invoice["address"]: PRICE})
    town.esplora.mine(60)  # more than a page of other people's blocks; no round meanwhile
    for _ in range(60):
        town.esplora.send({invoice["address"]: 1})
        town.esplora.mine()
    bench.clock.advance(130)
    await bench.round()
    assert await bench.state(invoice) == "paid_over"
    assert len(await bench.rows("select * from crypto_receipts")) == 61


async def test_a_told_transaction_is_looked_for_and_what_came_of_it_is_said(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    paying = town.esplora.send({invoice["address"]: PRICE})
    other = town.esplora.send({"elsewhere": PRICE})
    await bench.tell(invoice, paying.upper())
    await bench.tell(invoice, other)
    await bench.tell(invoice, "ab" * 32)
    await bench.round()
    results = {row["tx"]: row["result"] for row in await bench.rows("select * from crypto_told")}
    assert results == {paying: "found", other: "not_ours", "ab" * 32: "waiting"}
    await town.pass_time(86_401)
    results = {row["tx"]: row["result"] for row in await bench.rows("select * from crypto_told")}
    assert results["ab" * 32] == "not_found"


async def test_nobody_gets_a_payment_by_telling_of_it(town: Town):
    bench = town.bench
    paid, thief = await bench.invoice("BTC"), await bench.invoice("BTC")
    tx = town.esplora.send({paid["address"]: PRICE})
    await bench.tell(thief, tx)
    await town.mine(NEEDED)
    assert (await bench.state(paid), await bench.state(thief)) == ("paid", "new")


async def test_what_was_paid_before_an_invoice_was_made_is_not_its_payment(town: Town):
    bench = town.bench
    town.esplora.send({OURS[0]: PRICE})
    town.esplora.mine()
    bench.clock.advance(3 * 3600)
    town.esplora.now = int(bench.clock.now.timestamp())
    await bench.round()
    invoice = await bench.invoice("BTC")
    assert invoice["address"] == OURS[0]
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "new"


async def test_a_chain_that_does_not_answer_changes_nothing_and_is_read_on_later(town: Town):
    bench = town.bench
    invoice = await bench.invoice("BTC")
    town.esplora.send({invoice["address"]: PRICE})
    for status in (500, 429):
        town.esplora.fail = status
        with pytest.raises(Transient):
            await bench.round()
    town.esplora.fail = None
    bench.clock.advance(301)
    with pytest.raises(Transient, match="cannot be read"):
        await bench.invoice("BTC")
    await town.mine(NEEDED)
    assert await bench.state(invoice) == "paid"


async def test_another_network_is_refused(town: Town):
    async with FakeEsplora(NOW.timestamp(), genesis=GENESIS["mainnet"]) as esplora:
        reader = Esplora(esplora.url, "regtest", "BTC")
        with pytest.raises(WrongChain):
            await reader.check()
        await reader.close()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([1_000, 14_500, 29_000, 40_000])),
        st.tuples(st.just("mine"), st.integers(1, 3)),
        st.tuples(st.just("reorganise"), st.integers(1, 3)),
        st.tuples(st.just("replace"), st.sampled_from([1_000, 29_000])),
        st.tuples(st.just("forget"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([10, 600, 3_601])),
        st.tuples(st.just("round"), st.just(0)),
    ),
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
async def test_whatever_a_chain_does_what_it_ends_with_is_what_counts(
    open_database: Callable[[str], Database], steps: list[tuple[str, int]]
):
    database = open_database("payment")
    async with town_on(database) as town:
        bench, esplora = town.bench, town.esplora
        invoice = await bench.invoice("BTC", user=uuid4())
        for step in steps:
            await act(town, invoice["address"], step)
        await town.mine(FINAL)
        await town.pass_time(3_602)
        await town.mine()
        await bench.round()
        truth = sum(value for tx in esplora._deep(invoice["address"]) for _, value in tx.outs)
        row = await bench.get(invoice)
        assert int(row["confirmed"]) == truth == int(row["received"])
        assert sum(bench.books().values()) == Decimal(truth) / 10**8
        names = [one.reference for one in bench.booked]
        assert len(names) == len(set(names))
        whole = truth >= PRICE
        assert row["state"] in ({"paid", "paid_over", "paid_late"} if whole else {"expired", "invalid", "paid_partial"})
        subscription = await bench.subscription(invoice["user_id"])
        assert (subscription is not None and subscription["status"] == "active") == whole
        told = [one for one in await bench.told("payment.payments") if one["user_id"] == str(invoice["user_id"])]
        assert len(told) <= 1
        assert bool(told) >= whole
    await database.close()


async def act(town: Town, address: str, step: tuple[str, int]) -> None:
    what, how_much = step
    esplora = town.esplora
    waiting: Any = esplora._waiting[-1].txid if esplora._waiting else None
    if what == "send":
        esplora.send({address: how_much})
    elif what == "mine":
        esplora.mine(how_much)
    elif what == "reorganise":
        esplora.reorganise(min(how_much, esplora.height - 1))
    elif what == "replace" and waiting:
        esplora.replace(waiting, {address: how_much})
    elif what == "forget" and waiting:
        esplora.forget(waiting)
    elif what == "wait":
        await town.pass_time(how_much)
    else:
        await town.bench.round()
