"""A payment on an EVM chain, from the transfer to the plan: found or told of, late, and whose it is."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from uuid import uuid4

import pytest

from shared.db import Database
from shared.errors import Conflict
from tests.payment.evm_town import USDC, Town, built


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> Town:
    return await built(open_database("payment"))


async def test_a_payment_is_found_without_being_told_and_grants_one_period_once(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    assert (invoice["address"], int(invoice["amount"])) == (town.ours[0], 29 * USDC)
    await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await town.round()
    assert await bench.state(invoice) == "confirming"
    assert await bench.subscription(invoice["user_id"]) is None
    await town.confirm()
    await town.round()
    assert await bench.state(invoice) == "paid"
    subscription = await bench.subscription(invoice["user_id"])
    assert subscription is not None
    assert (subscription["provider"], subscription["status"], subscription["plan"]) == ("crypto", "active", "pro")
    period = subscription["current_period_end"] - subscription["current_period_start"]
    assert timedelta(days=28) <= period <= timedelta(days=31)
    [told] = await bench.told("payment.payments")
    assert (Decimal(told["amount"]), told["currency"], told["renewal"]) == (Decimal(29), "USDC", False)
    assert len(await bench.told("payment.subscriptions")) == 1
    [movement] = bench.booked
    assert (movement.kind, movement.amount, movement.worth_usd) == ("received", Decimal(29), Decimal("29.00"))
    assert movement.user_id == invoice["user_id"]


async def test_a_told_transaction_that_waits_is_seen_before_it_is_in_a_block(town: Town):
    bench = town.bench
    invoice = await bench.invoice("ETH")
    town.evm.tester.disable_auto_mine_transactions()
    tx = await town.evm.send(invoice["address"], int(invoice["amount"]))
    await bench.tell(invoice, tx.upper().replace("0X", "0x"))
    await town.round()
    assert await bench.state(invoice) == "seen"
    await town.confirm()
    assert await bench.state(invoice) == "paid"
    [receipt] = await bench.rows("select * from crypto_receipts")
    assert (receipt["tx"], receipt["status"]) == (tx, "mined")


async def test_a_told_transaction_of_a_token_is_waited_for_until_it_is_in_a_block(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    town.evm.tester.disable_auto_mine_transactions()
    tx = await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await bench.tell(invoice, tx)
    await town.round()
    assert [row["result"] for row in await bench.rows("select * from crypto_told")] == ["waiting"]
    await town.confirm()
    assert await bench.state(invoice) == "paid"
    assert [row["result"] for row in await bench.rows("select * from crypto_told")] == ["found"]


async def test_what_is_added_to_a_late_payment_is_worth_something_too(town: Town):
    bench = town.bench
    invoice = await bench.invoice("ETH")
    bench.clock.advance(1200)
    town.evm.travel(bench.clock.now)
    bench.rates._usd["ETH"] = Decimal(2000)
    await town.evm.send(invoice["address"], 10**16)
    await town.confirm()
    await town.round()
    row = await bench.get(invoice)
    assert (row["state"], row["worth_usd"], row["granted_until"]) == ("paid_late", Decimal("20.00"), None)
    bench.rates._usd["ETH"] = Decimal(5000)
    await town.round()
    assert (await bench.get(invoice))["granted_until"] is None, "a better rate alone changes nothing"
    bench.rates._usd["ETH"] = Decimal(2000)
    await town.evm.send(invoice["address"], 10**16)
    await town.confirm()
    await town.round()
    row = await bench.get(invoice)
    assert (row["state"], row["worth_usd"]) == ("paid_late", Decimal("40.00"))
    assert row["granted_until"] is not None


async def test_made_up_transactions_keep_no_real_one_from_being_looked_for(town: Town):
    bench = town.bench
    for _ in range(21):
        invoice = await bench.invoice("USDC")
        for _ in range(5):
            await bench.tell(invoice, f"0x{uuid4().hex:0>64}")
    bench.clock.advance(1)
    invoice = await bench.invoice("ETH")
    town.evm.tester.disable_auto_mine_transactions()
    tx = await town.evm.send(invoice["address"], int(invoice["amount"]))
    await bench.tell(invoice, tx)
    await town.round()
    await town.round()
    assert await bench.state(invoice) == "seen"


async def test_a_user_has_five_transactions_looked_for_at_a_time(town: Town):
    bench, user = town.bench, uuid4()
    one, two = await bench.invoice("USDC", user=user), await bench.invoice("USDC", user=user)
    made_up = [f"0x{uuid4().hex:0>64}" for _ in range(6)]
    for number, transaction in enumerate(made_up[:5]):
        await bench.tell(one if number % 2 else two, transaction)
    with pytest.raises(Conflict, match="looked for"):
        await bench.tell(one, made_up[5])
    await bench.tell(two, made_up[4])
    await bench.tell(await bench.invoice("USDC"), made_up[5])
    bench.clock.advance(24 * 3600 + 1)
    await bench.round()
    await bench.tell(one, made_up[5])


async def test_a_transaction_is_told_only_of_an_invoice_that_still_holds_its_address(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    bench.clock.advance(8 * 86400)
    await bench.round()
    with pytest.raises(Conflict, match="too old"):
        await bench.tell(await bench.get(invoice), f"0x{uuid4().hex:0>64}")


async def test_a_transaction_that_waits_for_days_does_not_keep_the_rate(town: Town):
    bench = town.bench
    soon, never = await bench.invoice("ETH"), await bench.invoice("ETH")
    town.evm.tester.disable_auto_mine_transactions()
    for invoice in (soon, never):
        tx = await town.evm.send(invoice["address"], int(invoice["amount"]), sender=1 if invoice is soon else 2)
        await bench.tell(invoice, tx)
    await town.round()
    assert [await bench.state(one) for one in (soon, never)] == ["seen", "seen"]
    await bench.execute(
        f"update crypto_invoices set expires_at = expires_at - interval '25 hours' where id = '{never['id']}'"
    )
    await bench.execute("update crypto_receipts set at = at - interval '25 hours'")
    await town.confirm()
    assert [await bench.state(one) for one in (soon, never)] == ["paid", "paid_late"]


async def test_on_a_shared_address_the_exact_amount_says_whose_a_payment_is(town: Town):
    bench = town.bench
    own = [await bench.invoice("USDC") for _ in town.ours]
    assert {row["address"] for row in own} == set(town.ours)
    one, two = await bench.invoice("USDC"), await bench.invoice("USDC")
    assert {one["address"], two["address"]} == {town.shared}
    assert (int(one["amount"]), int(two["amount"])) == (29_000_000, 29_000_001)
    await town.evm.call(town.usdc, "transfer", town.shared, 29_000_001)
    await town.evm.call(town.usdc, "transfer", town.shared, 28_000_000)
    await town.confirm()
    assert (await bench.state(one), await bench.state(two)) == ("new", "paid")
    [stray] = await bench.rows("select * from crypto_receipts where invoice_id is null")
    assert int(stray["amount"]) == 28_000_000
    assert len(bench.booked) == 1
    town.evm.mine(8)
    await town.round()
    assert (bench.booked[1].user_id, bench.booked[1].amount) == (None, Decimal(28))


async def test_a_stray_that_is_too_large_for_the_ledger_keeps_no_other_out_of_it(town: Town):
    bench = town.bench
    assert {(await bench.invoice("USDC"))["address"] for _ in range(4)} == {*town.ours, town.shared}
    await town.evm.call(town.usdc, "transfer", town.shared, 5 * USDC)
    await town.evm.call(town.usdc, "transfer", town.shared, 7 * USDC)
    await town.confirm()
    await bench.execute(f"update crypto_receipts set amount = {10**38} where amount = {5 * USDC}")
    town.evm.mine(8)
    await town.round()
    assert [one.amount for one in bench.booked] == [Decimal(7)]
    assert [row["settled"] for row in await bench.rows("select settled from crypto_receipts")] == [True, True]
    assert len(await bench.rows("select * from crypto_receipts where invoice_id is null")) == 2
