"""Payment on an EVM chain: a real one in this process, with contracts that are honest and others that are not."""

import json
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest

from services.payment.adapters.evm import Evm, over_http
from services.payment.domain.chains import Chain
from services.payment.domain.crypto import Block, Transfer
from services.payment.domain.plans import Plans
from services.payment.ports import WrongChain
from services.payment.service.audit import Actor, Audit
from services.payment.service.catalogue import Catalogue
from services.payment.service.changes import Changes
from services.payment.store.mirror import MirrorStore
from services.payment.store.receipts import ReceiptStore
from shared.clock import new_id
from shared.db import Database
from shared.errors import Conflict, Transient
from tests.conftest import ManualClock, recorded
from tests.fakes.evm import CHAIN_ID, EvmChain
from tests.payment.crypto_bench import PRO, TEAM, Bench

USDC = 10**6
NEEDED = 3


@dataclass
class Town:
    """A chain, an honest token on it, one that keeps 1%, and our bench."""

    evm: EvmChain
    bench: Bench
    usdc: Any
    taxed: Any
    ours: list[str]
    shared: str

    async def confirm(self) -> None:
        self.evm.mine(NEEDED)
        await self.round()

    async def round(self) -> None:
        self.bench.clock.now = max(self.bench.clock.now, self.evm.time)
        await self.bench.round()


class Behind(Evm):
    """Asks for blocks where they have not arrived yet, but for the head."""

    async def hash_of(self, number: int) -> str | None:
        del number
        return None

    async def transfers(self, first: int, last: int, addresses: Collection[str]) -> Sequence[Transfer]:
        del first, last, addresses
        return ()


class TwoMinds:
    """One address with two peers behind it: what `stale` holds is answered instead of what the chain says."""

    def __init__(self, node: Any) -> None:
        self._node, self.stale = node, dict[str, Any]()

    def __getattr__(self, name: str) -> Any:
        return self if name == "eth" else getattr(self._node.eth, name)

    async def get_transaction(self, tx: Any) -> Any:
        return self.stale["sent"] if self.stale else await self._node.eth.get_transaction(tx)

    async def get_transaction_receipt(self, tx: Any) -> Any:
        return self.stale["receipt"] if self.stale else await self._node.eth.get_transaction_receipt(tx)


def chain_over(usdc: Any, taxed: Any, addresses: list[str], shared: str | None, **more: Any) -> Chain:
    fields: dict[str, Any] = {
        "name": "dev",
        "kind": "evm",
        "chain_id": CHAIN_ID,
        "addresses": addresses,
        "shared_address": shared,
        "confirmations": [{"blocks": NEEDED}],
        "final_blocks": 8,
        "rescan_blocks": 1,
        "assets": [
            {"symbol": "ETH", "decimals": 18},
            {"symbol": "USDC", "decimals": 6, "contract": usdc.address, "stable": True},
            {"symbol": "TAX", "decimals": 6, "contract": taxed.address, "stable": True},
        ],
    }
    return Chain.model_validate(fields | more)


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> Town:
    evm = EvmChain(json.loads(recorded("data", "evm", "contracts.json").read_text()))
    usdc = await evm.deploy("T", "USDC", 6, 0)
    taxed = await evm.deploy("T", "TAX", 6, 100)
    ours, shared = evm.accounts[5:8], evm.accounts[8]
    chain = chain_over(usdc, taxed, ours, shared)
    bench = Bench(
        open_database("payment"),
        ManualClock(evm.time + timedelta(seconds=1)),
        [(chain, Evm(chain, lambda: evm.node))],
        {"ETH": Decimal(2900)},
    )
    town = Town(evm, bench, usdc, taxed, ours, shared)
    await town.round()
    return town


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


async def test_a_node_of_another_chain_is_refused_and_no_invoice_is_made_there(town: Town):
    bench = town.bench
    wrong = chain_over(town.usdc, town.taxed, town.ours, None, chain_id=1)
    other = Bench(bench.database, bench.clock, [(wrong, Evm(wrong, lambda: town.evm.node))])
    with pytest.raises(WrongChain):
        await other.round()
    with pytest.raises(Exception, match="cannot be read"):
        await other.invoice("USDC")
    await bench.round()
    assert await bench.invoice("USDC")


async def test_a_token_that_counts_in_other_decimals_than_configured_stops_the_chain(town: Town):
    eighteen = await town.evm.deploy("T", "USDC", 18, 0)
    no_token = await town.evm.deploy("Multi")
    async with town.evm.served() as url:
        for contract in (eighteen.address, no_token.address, town.evm.accounts[3]):
            token = {"symbol": "USDC", "decimals": 6, "contract": contract, "stable": True}
            chain = chain_over(town.usdc, town.taxed, town.ours, None, assets=[token])
            bench = Bench(town.bench.database, town.bench.clock, [(chain, Evm(chain, lambda: over_http(url)))])
            with pytest.raises(WrongChain, match="USDC"):
                await bench.round()
            with pytest.raises(Exception, match="cannot be read"):
                await bench.invoice("USDC")
            await bench.close()
    await town.bench.round()
    assert await town.bench.invoice("USDC")


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


async def test_the_service_reads_a_chain_over_http(town: Town):
    chain = chain_over(town.usdc, town.taxed, town.ours, None)
    await town.evm.call(town.usdc, "transfer", town.ours[0], 5)
    tx = await town.evm.send(town.ours[1], 7)
    async with town.evm.served() as url:
        reader = Evm(chain, lambda: over_http(url))
        await reader.check()
        head = await reader.head()
        found = await reader.transfers(1, head.number, town.ours)
        assert [(one.asset, one.amount) for one in found] == [("USDC", 5), ("ETH", 7)]
        assert await reader.transaction(tx, town.ours) == [found[1]]
        assert await reader.transaction(f"0x{uuid4().hex:0>64}", town.ours) is None
        assert await reader.hash_of(head.number) == head.hash
        assert await reader.hash_of(head.number + 100) is None
        await reader.close()


def test_connecting_leaves_the_depth_of_the_stack_as_it_was() -> None:
    """web3 lets Python go so deep that nested JSON ends the process."""
    code = (
        "import sys; from services.payment.adapters.evm import over_http\n"
        "before = sys.getrecursionlimit(); over_http('http://127.0.0.1:9')\n"
        "print(sys.getrecursionlimit() - before)"
    )
    told = subprocess.run((sys.executable, "-c", code), capture_output=True, check=True, text=True)
    assert told.stdout.strip() == "0"
