"""The node that an EVM chain is read from: which one is believed, and what connecting to it does."""

import subprocess
import sys
from collections.abc import Callable
from uuid import uuid4

import pytest

from services.payment.adapters.evm import Evm, over_http
from services.payment.ports import WrongChain
from shared.db import Database
from tests.payment.crypto_bench import Bench
from tests.payment.evm_town import Town, built, chain_over


@pytest.fixture
async def town(open_database: Callable[[str], Database]) -> Town:
    return await built(open_database("payment"))


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
