"""A real EVM chain in this process (eth-tester and py-evm), with the recorded contracts, and a way to reorganise it.

    chain = EvmChain(contracts)
    usdc = await chain.deploy("T", "USDC", 6, 0)
    tx = await chain.call(usdc, "transfer", to, 29_000_000)
    before = chain.snapshot(); ...; chain.revert(before)    # what came after never happened

`chain.node` is the AsyncWeb3 that adapters are given; `async with chain.served() as url` offers the same as JSON-RPC
over HTTP.
"""

import json
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

from aiohttp import web
from aiohttp.test_utils import TestServer

_LIMIT = sys.getrecursionlimit()

from eth_tester.exceptions import TransactionFailed  # noqa: E402 - between two looks at the limit
from web3 import AsyncWeb3  # noqa: E402 - same
from web3.providers.eth_tester import AsyncEthereumTesterProvider  # noqa: E402 - same

CHAIN_ID = 131277322940537
"""What eth-tester says it is."""

sys.setrecursionlimit(_LIMIT)


class EvmChain:
    """One chain; each transaction is mined in a block of its own unless `batched` says otherwise."""

    def __init__(self, contracts: Mapping[str, Any]) -> None:
        provider = AsyncEthereumTesterProvider()
        sys.setrecursionlimit(_LIMIT)  # as adapters/evm.py does: what is loaded here makes it a hundred times as much
        self.tester: Any = provider.ethereum_tester
        self.node: AsyncWeb3[Any] = AsyncWeb3(provider)
        self._contracts = contracts
        self.accounts: list[str] = list(self.tester.get_accounts())
        self.calls: list[str] = []

    @property
    def time(self) -> datetime:
        """Of the newest block."""
        return datetime.fromtimestamp(self.tester.get_block_by_number("latest")["timestamp"], UTC)

    async def deploy(self, name: str, *args: Any) -> Any:
        """Deploy a contract; return it."""
        made = self._contracts[name]
        contract = self.node.eth.contract(abi=made["abi"], bytecode=made["bin"])
        tx = await contract.constructor(*args).transact({"from": self.accounts[0]})
        receipt = await self.node.eth.get_transaction_receipt(tx)
        return self.node.eth.contract(address=receipt["contractAddress"], abi=made["abi"])

    async def call(self, contract: Any, function: str, *args: Any, value: int = 0, sender: int = 0) -> str:
        """Call a contract's function in a transaction; return its id."""
        sent = contract.functions[function](*args)
        tx = await sent.transact({"from": self.accounts[sender], "value": value, "gas": 500_000})
        return f"0x{bytes(tx).hex()}"

    async def send(self, to: str, value: int, sender: int = 0) -> str:
        """Send coins; return the transaction's id."""
        tx = await self.node.eth.send_transaction(
            cast("Any", {"from": self.accounts[sender], "to": to, "value": value})
        )
        return f"0x{bytes(tx).hex()}"

    def mine(self, blocks: int = 1) -> None:
        """Mine blocks."""
        self.tester.mine_blocks(blocks)

    def travel(self, to: datetime) -> None:
        """Make the next block's time at least this."""
        self.tester.time_travel(int(to.timestamp()))

    def snapshot(self) -> Any:
        """Remember the chain as it is."""
        return self.tester.take_snapshot()

    def revert(self, snapshot: Any) -> None:
        """Make the chain what it was: a reorganisation takes away what came after."""
        self.tester.revert_to_snapshot(snapshot)

    @asynccontextmanager
    async def served(self) -> AsyncGenerator[str]:
        """Serve JSON-RPC over HTTP."""

        async def answer(request: web.Request) -> web.Response:
            asked = await request.json()
            self.calls.append(asked["method"])
            ask: Any = await self.node.provider.request_func(self.node, self.node.middleware_onion)
            try:
                answered = dict(await ask(asked["method"], asked["params"]))
            except TransactionFailed:
                answered = {"jsonrpc": "2.0", "error": {"code": 3, "message": "execution reverted"}}
            answered["id"] = asked["id"]
            return web.Response(text=json.dumps(answered, default=_plain), content_type="application/json")

        app = web.Application()
        app.router.add_post("/", answer)
        server = TestServer(app)
        await server.start_server()
        try:
            yield str(server.make_url("/"))
        finally:
            await server.close()


def _plain(value: Any) -> Any:
    return f"0x{bytes(value).hex()}" if isinstance(value, bytes) else dict(value)
