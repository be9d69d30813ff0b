"""What an EVM chain brings to an address: which transfers count, each once, and which do not."""

from collections.abc import Callable

import pytest

from services.payment.adapters.evm import Evm
from shared.db import Database
from tests.payment.evm_town import USDC, Town, built, chain_over


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> Town:
    return await built(open_database("payment"))


async def test_a_transfer_event_of_another_contract_does_not_count(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    fake, nft = await town.evm.deploy("Fake"), await town.evm.deploy("Nft")
    spoofed = await town.evm.call(fake, "spoof", invoice["address"], 29 * USDC)
    await town.evm.call(nft, "spoof", invoice["address"], 29 * USDC)
    await bench.tell(invoice, spoofed)
    await town.confirm()
    assert await bench.state(invoice) == "new"
    assert await bench.rows("select * from crypto_receipts") == []
    [told] = await bench.rows("select * from crypto_told")
    assert told["result"] == "not_ours"


async def test_an_nft_with_the_same_event_as_a_configured_token_does_not_count(town: Town):
    nft = await town.evm.deploy("Nft")
    chain = chain_over(nft, town.taxed, town.ours, None)
    tx = await town.evm.call(nft, "spoof", town.ours[0], 29 * USDC)
    reader = Evm(chain, lambda: town.evm.node)
    head = await reader.head()
    assert await reader.transfers(1, head.number, town.ours) == []
    assert await reader.transaction(tx, town.ours) == []


async def test_what_a_token_keeps_as_its_fee_was_not_received(town: Town):
    bench = town.bench
    invoice = await bench.invoice("TAX")
    await town.evm.call(town.taxed, "transfer", invoice["address"], 29 * USDC)
    await town.confirm()
    row = await bench.get(invoice)
    assert (row["state"], int(row["received"])) == ("paid_partial", 28_710_000)
    assert await bench.subscription(invoice["user_id"]) is None
    await town.evm.call(town.taxed, "transfer", invoice["address"], 300_000)  # 297,000 arrive: the rest and some more
    await town.confirm()
    assert await bench.state(invoice) == "paid_over"
    assert await bench.subscription(invoice["user_id"]) is not None


async def test_several_transfers_of_one_transaction_all_count(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    many = await town.evm.deploy("Multi")
    await town.evm.call(town.usdc, "transfer", many.address, 100 * USDC)
    await town.evm.call(many, "many", town.usdc.address, invoice["address"], 29 * USDC // 4, 4)
    await town.confirm()
    assert await bench.state(invoice) == "paid"
    receipts = await bench.rows("select tx, idx from crypto_receipts order by idx")
    assert len({row["tx"] for row in receipts}) == 1
    assert [row["idx"] for row in receipts] == [0, 1, 2, 3]


async def test_coins_count_whether_a_person_or_a_contract_sends_them(town: Town):
    bench = town.bench
    plain, internal = await bench.invoice("ETH"), await bench.invoice("ETH")
    assert int(plain["amount"]) == 10**16
    await town.evm.send(plain["address"], 10**16)
    contract = await town.evm.deploy("Internal")
    await town.evm.call(contract, "pay", internal["address"], value=10**16)
    await town.confirm()
    assert (await bench.state(plain), await bench.state(internal)) == ("paid", "paid")
    found = {row["idx"]: row for row in await bench.rows("select * from crypto_receipts")}
    assert set(found) == {-1, -2}
    assert found[-2]["tx"].endswith(internal["address"])
    await town.round()
    await town.confirm()
    assert len(await bench.rows("select * from crypto_receipts")) == 2


async def test_coins_that_leave_an_address_do_not_hide_what_came_in(town: Town):
    bench = town.bench
    invoice = await bench.invoice("ETH")
    ours = town.evm.accounts.index(invoice["address"])
    contract = await town.evm.deploy("Internal")
    town.evm.tester.disable_auto_mine_transactions()
    await town.evm.send(town.evm.accounts[1], 10**17, sender=ours)
    await town.evm.call(contract, "pay", invoice["address"], value=10**16)
    town.evm.mine()
    assert len(town.evm.tester.get_block_by_number("latest")["transactions"]) == 2
    await town.confirm()
    assert await bench.state(invoice) == "paid"


async def test_a_transaction_that_failed_brings_nothing(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    tx = await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC, sender=1)  # who has no USDC
    await bench.tell(invoice, tx)
    await town.confirm()
    assert await bench.state(invoice) == "new"
    [told] = await bench.rows("select * from crypto_told")
    assert told["result"] == "not_ours"
