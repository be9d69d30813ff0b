"""An EVM chain with an honest token and one that keeps a fee, and payments by it: what tests of EVM payments share."""

import json
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from services.payment.adapters.evm import Evm
from services.payment.domain.chains import Chain
from shared.db import Database
from tests.conftest import ManualClock, recorded
from tests.fakes.evm import CHAIN_ID, EvmChain
from tests.payment.crypto_bench import Bench

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


async def built(database: Database) -> Town:
    """Return a town with an invoice service that has read its chain once."""
    evm = EvmChain(json.loads(recorded("data", "evm", "contracts.json").read_text()))
    usdc = await evm.deploy("T", "USDC", 6, 0)
    taxed = await evm.deploy("T", "TAX", 6, 100)
    ours, shared = evm.accounts[5:8], evm.accounts[8]
    chain = chain_over(usdc, taxed, ours, shared)
    bench = Bench(
        database,
        ManualClock(evm.time + timedelta(seconds=1)),
        [(chain, Evm(chain, lambda: evm.node))],
        {"ETH": Decimal(2900)},
    )
    town = Town(evm, bench, usdc, taxed, ours, shared)
    await town.round()
    return town
