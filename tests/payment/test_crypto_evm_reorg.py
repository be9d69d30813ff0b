"""Blocks that an EVM chain gives up, and nodes that disagree about them: a payment neither doubles nor vanishes."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.payment.adapters.evm import Evm
from services.payment.domain.crypto import Block, Transfer
from services.payment.domain.plans import Plans
from services.payment.service.audit import Actor, Audit
from services.payment.service.catalogue import Catalogue
from services.payment.service.changes import Changes
from services.payment.store.mirror import MirrorStore
from services.payment.store.receipts import ReceiptStore
from shared.clock import new_id
from shared.db import Database, Row
from shared.errors import Transient
from tests.payment.crypto_bench import PRO, TEAM, Bench
from tests.payment.evm_town import NEEDED, USDC, Town, TwoMinds, built


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> Town:
    return await built(open_database("payment"))


class Behind(Evm):
    """Asks for blocks where they have not arrived yet, but for the head."""

    async def hash_of(self, number: int) -> str | None:
        del number
        return None

    async def transfers(self, first: int, last: int, addresses: Collection[str]) -> Sequence[Transfer]:
        del first, last, addresses
        return ()


async def test_a_token_payment_that_a_reorganisation_puts_back_among_the_waiting_is_not_given_up(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    before = town.evm.snapshot()
    tx = await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await town.round()
    town.evm.revert(before)
    town.evm.tester.disable_auto_mine_transactions()
    assert await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC) == tx
    await town.round()
    assert [row["status"] for row in await bench.rows("select status from crypto_receipts")] == ["lost"]
    assert await bench.state(invoice) == "seen"


async def test_a_node_that_is_behind_takes_no_payment_back(town: Town):
    bench = town.bench
    invoice = await bench.invoice("ETH")
    contract = await town.evm.deploy("Internal")
    await town.evm.call(contract, "pay", invoice["address"], value=int(invoice["amount"]))
    await town.confirm()
    assert await bench.state(invoice) == "paid"
    chain = bench.chains[0][0]
    behind = Bench(bench.database, bench.clock, [(chain, Behind(chain, lambda: town.evm.node))], bench.usd)
    await behind.round()
    assert [row["status"] for row in await bench.rows("select status from crypto_receipts")] == ["mined"]
    assert await bench.state(invoice) == "paid"
    assert behind.booked == []


async def test_a_reorganisation_takes_a_payment_back_and_a_second_one_brings_it_again(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    before = town.evm.snapshot()
    await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await town.confirm()
    assert await bench.state(invoice) == "paid"
    town.evm.revert(before)
    town.evm.mine()
    await town.round()
    assert await bench.state(invoice) == "seen"
    subscription = await bench.subscription(invoice["user_id"])
    assert subscription is not None
    assert subscription["status"] == "active", "in doubt, what was given stays"
    bench.clock.advance(3601)
    await bench.round()
    assert await bench.state(invoice) == "invalid"
    assert bench.books() == {"USDC": Decimal(0)}
    subscription = await bench.subscription(invoice["user_id"])
    assert subscription is not None
    assert subscription["status"] == "expired"
    await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await town.confirm()
    assert await bench.state(invoice) in {"paid", "paid_late"}
    assert bench.books() == {"USDC": Decimal(29)}
    assert await bench.history(invoice) == ["paid", "seen", "invalid", await bench.state(invoice)]
    assert len(await bench.told("payment.payments")) == 1


@pytest.mark.parametrize("comes_back", [True, False], ids=["comes-back", "stays-away"])
async def test_a_contracts_payment_that_a_reorganisation_takes_away_leaves_access_while_it_is_in_doubt(
    town: Town, *, comes_back: bool
) -> None:
    bench = town.bench
    invoice = await bench.invoice("ETH")
    contract = await town.evm.deploy("Internal")
    before = town.evm.snapshot()
    await town.evm.call(contract, "pay", invoice["address"], value=int(invoice["amount"]))
    await town.confirm()
    assert await bench.state(invoice) == "paid"
    town.evm.revert(before)
    town.evm.travel(bench.clock.now + timedelta(seconds=30))
    town.evm.mine(NEEDED + 2)
    await town.round()
    assert await bench.state(invoice) == "seen"
    assert await entitled(bench, invoice)
    if comes_back:
        await town.evm.call(contract, "pay", invoice["address"], value=int(invoice["amount"]))
        await town.round()
        assert await bench.state(invoice) == "confirming"
        assert await entitled(bench, invoice)
        await town.confirm()
    else:
        bench.clock.advance(3599)
        await bench.round()
        assert await entitled(bench, invoice)
        bench.clock.advance(1)
        await bench.round()
    assert await bench.state(invoice) == ("paid" if comes_back else "invalid")
    assert await entitled(bench, invoice) is comes_back
    assert bench.books() == {"ETH": Decimal("0.01") if comes_back else Decimal(0)}
    statuses = await bench.rows("select status from crypto_receipts order by created_at")
    assert [row["status"] for row in statuses] == (["dropped", "mined"] if comes_back else ["dropped"])
    assert len(await bench.told("payment.payments")) == 1


async def entitled(bench: Bench, invoice: Row) -> bool:
    subscription = await bench.subscription(invoice["user_id"])
    assert subscription is not None
    return subscription["status"] == "active"


async def test_a_payment_that_a_reorganisation_moves_to_another_block_is_counted_once(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    before = town.evm.snapshot()
    first = await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await town.confirm()
    town.evm.revert(before)
    town.evm.mine(2)
    again = await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    assert again == first, "the same transaction, in another block"
    await town.round()
    assert await bench.state(invoice) == "confirming"
    await town.confirm()
    assert await bench.state(invoice) == "paid"
    assert len(await bench.rows("select * from crypto_receipts")) == 1
    assert len(await bench.told("payment.payments")) == 1
    assert len(await bench.told("payment.subscriptions")) == 1
    assert bench.books() == {"USDC": Decimal(29)}


@pytest.mark.parametrize("asset", ["USDC", "ETH"])
async def test_a_receipt_of_a_block_that_the_chain_has_given_up_is_not_believed(town: Town, asset: str):
    chain = town.bench.chains[0][0]
    node: Any = TwoMinds(town.evm.node)
    bench = Bench(town.bench.database, town.bench.clock, [(chain, Evm(chain, lambda: node))], town.bench.usd)
    town.bench = bench
    invoice = await bench.invoice(asset)
    before = town.evm.snapshot()
    if asset == "USDC":
        tx = await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    else:
        tx = await town.evm.send(invoice["address"], int(invoice["amount"]))
    await town.round()
    eth: Any = town.evm.node.eth
    stale = {"sent": await eth.get_transaction(tx), "receipt": await eth.get_transaction_receipt(tx)}
    town.evm.revert(before)
    town.evm.travel(bench.clock.now + timedelta(seconds=30))
    town.evm.mine(2)
    node.stale = stale
    with pytest.raises(Transient, match="two different blocks"):
        await town.round()
    node.stale = {}
    await town.round()
    bench.clock.advance(3601)
    town.evm.mine(8)
    await town.round()
    assert await bench.state(invoice) == "invalid"
    assert sum(bench.books().values()) == 0


async def test_a_coin_whose_receipt_is_of_another_block_is_read_again(town: Town):
    node: Any = TwoMinds(town.evm.node)
    reader = Evm(town.bench.chains[0][0], lambda: node)
    before = town.evm.snapshot()
    tx = await town.evm.send(town.ours[0], 7)
    eth: Any = town.evm.node.eth
    node.stale = {"receipt": await eth.get_transaction_receipt(tx)}
    town.evm.revert(before)
    town.evm.travel(town.evm.time + timedelta(seconds=30))
    assert await town.evm.send(town.ours[0], 7) == tx
    head = await reader.head()
    with pytest.raises(Transient, match="two different blocks"):
        await reader.transfers(head.number, head.number, town.ours)
    node.stale = {}
    assert [one.amount for one in await reader.transfers(head.number, head.number, town.ours)] == [7]


async def test_a_payment_below_what_was_read_is_found_after_a_reorganisation(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    before = town.evm.snapshot()
    town.evm.mine(6)
    await town.round()
    town.evm.revert(before)
    await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    town.evm.mine(6)
    await town.round()
    assert await bench.state(invoice) == "paid"


async def test_a_receipt_is_not_looked_at_again_once_it_is_final(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await town.confirm()
    assert [row["final"] for row in await bench.rows("select final from crypto_receipts")] == [False]
    town.evm.mine(8)
    await town.round()
    assert [row["final"] for row in await bench.rows("select final from crypto_receipts")] == [True]


async def test_a_period_that_was_stretched_by_a_change_of_plan_is_taken_back_as_stretched(town: Town):
    bench = town.bench
    invoice = await bench.invoice("USDC")
    before = town.evm.snapshot()
    await town.evm.call(town.usdc, "transfer", invoice["address"], 29 * USDC)
    await town.confirm()
    audit = Audit(bench.door, clock=bench.clock, new_id=new_id)
    catalogue = Catalogue(Plans([PRO, TEAM]), MirrorStore())
    changes = Changes(
        bench.subscriptions, bench.subscription_store, catalogue, door=bench.door, audit=audit, clock=bench.clock
    )
    for plan in ("team", "pro", "team"):
        await changes.change_plan(Actor(invoice["user_id"]), plan, None)
    town.evm.revert(before)
    town.evm.mine()
    await town.round()
    bench.clock.advance(3601)
    await bench.round()
    assert await bench.state(invoice) == "invalid"
    subscription = await bench.subscription(invoice["user_id"])
    assert subscription is not None
    assert subscription["status"] == "expired"


async def test_a_transfer_that_a_reorganisation_puts_in_the_place_of_another_pays_its_own_invoice(town: Town):
    bench = town.bench
    one, two = await bench.invoice("USDC"), await bench.invoice("USDC")
    await town.evm.call(town.usdc, "transfer", one["address"], 29 * USDC)
    await town.round()
    [row] = await bench.rows("select * from crypto_receipts")
    assert row["invoice_id"] == one["id"]
    block = Block(row["block_number"], "0xanother", row["at"])
    moved = Transfer(row["tx"], row["idx"], "USDC", two["address"], 29 * USDC, None, block)
    async with bench.database.transaction() as tx:
        await ReceiptStore().note(tx, "dev", moved, bench.clock.now, timedelta(0))
    [row] = await bench.rows("select * from crypto_receipts")
    assert (row["address"], row["invoice_id"]) == (two["address"], two["id"])
    elsewhere = replace(moved, address=town.ours[2], block=replace(block, hash="0xa third"))
    async with bench.database.transaction() as tx:
        await ReceiptStore().note(tx, "dev", elsewhere, bench.clock.now, timedelta(0))
    [row] = await bench.rows("select * from crypto_receipts")
    assert row["invoice_id"] is None
