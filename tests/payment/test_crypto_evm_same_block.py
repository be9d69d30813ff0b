"""Several payments to one address in one block, or one transaction: it counts whole and once, whatever is given up.

Token transfers are a receipt each. What contracts send of the coin in one block is one receipt of the sum, for nothing
on the chain tells its parts apart (docs/payment.md).
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.payment.adapters.evm import Evm
from shared.db import Database, Row
from tests.payment.crypto_bench import Bench
from tests.payment.evm_town import USDC, Town, built

Pay = Callable[[], Awaitable[str]]


class CountedInBlocks:
    """Counts logs within their block, as chains do; eth-tester counts them within their transaction."""

    def __init__(self, node: Any) -> None:
        self._node = node

    def __getattr__(self, name: str) -> Any:
        return self if name == "eth" else getattr(self._node.eth, name)

    async def get_logs(self, asked: Any) -> Any:
        return [await self._placed(log) for log in await self._node.eth.get_logs(asked)]

    async def get_transaction_receipt(self, tx: Any) -> Any:
        receipt = await self._node.eth.get_transaction_receipt(tx)
        return {**receipt, "logs": [await self._placed(log) for log in receipt["logs"]]}

    async def _placed(self, log: Any) -> Any:
        block = await self._node.eth.get_block(log["blockNumber"])
        before = block["transactions"][: log["transactionIndex"]]
        receipts = [await self._node.eth.get_transaction_receipt(tx) for tx in before]
        return {**log, "logIndex": log["logIndex"] + sum(len(one["logs"]) for one in receipts)}


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> Town:
    town = await built(open_database("payment"))
    chain = town.bench.chains[0][0]
    node: Any = CountedInBlocks(town.evm.node)
    town.bench = Bench(town.bench.database, town.bench.clock, [(chain, Evm(chain, lambda: node))], town.bench.usd)
    return town


async def in_one_block(town: Town, *payments: Pay) -> None:
    """Mine these into one block, in this order."""
    town.evm.tester.disable_auto_mine_transactions()
    for pay in payments:
        await pay()
    town.evm.tester.enable_auto_mine_transactions()  # which mines what waits
    assert len(town.evm.tester.get_block_by_number("latest")["transactions"]) == len(payments)


async def live(town: Town) -> list[tuple[int, int]]:
    """Return (index, amount) of what the chain holds."""
    rows = await town.bench.rows("select idx, amount from crypto_receipts where status = 'mined' order by idx, tx")
    return [(row["idx"], int(row["amount"])) for row in rows]


async def assert_paid_once(town: Town, invoice: Row, books: dict[str, Decimal]) -> None:
    """Everything is in the ledger once, and bought one period that was told once."""
    bench = town.bench
    assert await bench.state(invoice) == "paid"
    assert {asset: held for asset, held in bench.books().items() if held} == books
    references = [one.reference for one in bench.booked]
    assert len(references) == len(set(references))
    assert len(await bench.told("payment.payments")) == len(await bench.told("payment.subscriptions")) == 1


async def by_contract(town: Town, invoice: Row, parts: Sequence[int]) -> list[Pay]:
    """Return payments of the coin by a contract, each of a sender of its own; `parts` are hundredths of the invoice."""
    contract = await town.evm.deploy("Internal")

    def pay(share: int, sender: int) -> Pay:
        value = int(invoice["amount"]) * share // 100
        return lambda: town.evm.call(contract, "pay", invoice["address"], value=value, sender=sender)

    return [pay(share, sender) for sender, share in enumerate(parts)]


async def test_what_contracts_send_in_one_block_is_counted_whole_and_once(town: Town) -> None:
    invoice = await town.bench.invoice("ETH")
    one, two = await by_contract(town, invoice, (40, 60))
    await in_one_block(town, one, two)
    for _ in range(2):
        await town.confirm()
    assert await live(town) == [(-2, int(invoice["amount"]))]
    await assert_paid_once(town, invoice, {"ETH": Decimal("0.01")})


async def test_a_contract_and_a_person_in_one_block_both_count(town: Town) -> None:
    invoice = await town.bench.invoice("ETH")
    part = int(invoice["amount"]) // 2
    (one,) = await by_contract(town, invoice, (50,))
    await in_one_block(town, one, lambda: town.evm.send(invoice["address"], part, sender=1))
    await town.confirm()
    assert await live(town) == [(-2, part), (-1, part)]
    await assert_paid_once(town, invoice, {"ETH": Decimal("0.01")})


@pytest.mark.parametrize("together_first", [True, False], ids=["then-apart", "then-together"])
async def test_contracts_payments_that_a_reorganisation_parts_or_joins_are_neither_doubled_nor_lost(
    town: Town, *, together_first: bool
) -> None:
    invoice = await town.bench.invoice("ETH")
    payments = await by_contract(town, invoice, (40, 60))

    async def mined(*, together: bool) -> None:
        if together:
            await in_one_block(town, *payments)
        else:
            for payment in payments:
                await in_one_block(town, payment)
        await town.confirm()
        await assert_paid_once(town, invoice, {"ETH": Decimal("0.01")})
        assert len(await live(town)) == (1 if together else 2)

    before = town.evm.snapshot()
    await mined(together=together_first)
    town.evm.revert(before)
    town.evm.travel(town.bench.clock.now + timedelta(seconds=30))
    await mined(together=not together_first)
    await town.round()
    await assert_paid_once(town, invoice, {"ETH": Decimal("0.01")})


async def test_two_transfers_of_a_token_that_change_places_in_their_block_are_two_receipts(town: Town) -> None:
    invoice = await town.bench.invoice("USDC")
    await town.evm.call(town.usdc, "transfer", town.evm.accounts[1], 100 * USDC)

    def pay(sender: int, amount: int) -> Pay:
        return lambda: town.evm.call(town.usdc, "transfer", invoice["address"], amount, sender=sender)

    one, two = pay(0, 14 * USDC), pay(1, 15 * USDC)
    before = town.evm.snapshot()
    await in_one_block(town, one, two)
    await town.confirm()
    assert await live(town) == [(0, 14 * USDC), (1, 15 * USDC)]
    await assert_paid_once(town, invoice, {"USDC": Decimal(29)})
    town.evm.revert(before)
    town.evm.travel(town.bench.clock.now + timedelta(seconds=30))
    await in_one_block(town, two, one)
    await town.confirm()
    assert await live(town) == [(0, 15 * USDC), (1, 14 * USDC)]
    await assert_paid_once(town, invoice, {"USDC": Decimal(29)})


async def test_two_equal_transfers_of_one_transaction_move_together_with_it(town: Town) -> None:
    invoice = await town.bench.invoice("USDC")
    many = await town.evm.deploy("Multi")
    for holder in (many.address, town.evm.accounts[1]):
        await town.evm.call(town.usdc, "transfer", holder, 100 * USDC)
    half = int(invoice["amount"]) // 2
    twice: Pay = lambda: town.evm.call(many, "many", town.usdc.address, invoice["address"], half, 2)  # noqa: E731
    other: Pay = lambda: town.evm.call(town.usdc, "transfer", town.evm.accounts[2], 1, sender=1)  # noqa: E731
    before = town.evm.snapshot()
    await in_one_block(town, twice)
    await town.confirm()
    assert await live(town) == [(0, half), (1, half)]
    town.evm.revert(before)
    town.evm.travel(town.bench.clock.now + timedelta(seconds=30))
    await in_one_block(town, other, twice)  # whose log comes first now, so these stand one place further
    await town.confirm()
    assert await live(town) == [(1, half), (2, half)]
    await assert_paid_once(town, invoice, {"USDC": Decimal(29)})
