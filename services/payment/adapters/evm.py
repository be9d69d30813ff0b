"""EVM chains by JSON-RPC, through web3.

Tokens: the logs of exactly the configured contracts, with exactly Transfer's shape, are what counts. Another contract
that writes the same event, or a token whose event has a third indexed argument, is not looked at. The amount is the
one in the log: what was credited, also where a token keeps a fee.

The coin: the value of a successful transaction straight to one of our addresses. What a contract sends leaves no log;
it is found as what the balance gained in a block beyond the values of that block's transactions. One such gain is one
transfer, named by block and address, for which transaction made it cannot be known without tracing.

What would surprise you: web3 is imported when the first connection is made, for it is 57 MB.
"""

import logging
import sys
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from prometheus_client import Counter

from services.payment.domain.chains import Asset, Chain
from services.payment.domain.crypto import BY_BALANCE, PLAIN, Block, Transfer
from services.payment.ports import WrongChain
from shared.errors import Transient
from shared.external import calling

if TYPE_CHECKING:
    from web3 import AsyncWeb3

TRANSFER: Final = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""keccak256("Transfer(address,address,uint256)")"""
DECIMALS: Final = "0x313ce567"
"""The call decimals()."""

UNRECONCILED: Final = Counter(
    "openbell_payment_unreconciled_total", "Ranges of blocks whose balances a node did not tell", ["chain"]
)

_TOPICS: Final = 3
_WORD: Final = 32
_ADDRESS: Final = 20


def over_http(url: str, *, timeout_s: float = 15.0) -> "AsyncWeb3[Any]":
    """Connect to a node; chains whose blocks carry their signers (Polygon, BNB) included."""
    limit = sys.getrecursionlimit()
    from web3 import AsyncHTTPProvider, AsyncWeb3  # noqa: PLC0415 - memory, see above
    from web3.middleware import ExtraDataToPOAMiddleware  # noqa: PLC0415 - same

    sys.setrecursionlimit(limit)  # web3 makes it 100,000: nested JSON would end the process, for C's stack is smaller
    logging.getLogger("web3").setLevel(logging.WARNING)  # it would write the address, which may hold a key
    node: AsyncWeb3[Any] = AsyncWeb3(AsyncHTTPProvider(url, request_kwargs={"timeout": timeout_s}))
    node.middleware_onion.inject(ExtraDataToPOAMiddleware, layer=0)
    return node


class Evm:
    """Reads one EVM chain."""

    def __init__(self, chain: Chain, connect: Callable[[], "AsyncWeb3[Any]"]) -> None:
        self._chain = chain
        UNRECONCILED.labels(chain.name)  # from zero on, or the first one would be no increase
        self._connect = connect
        self._node: AsyncWeb3[Any] | None = None
        self._tokens = {asset.contract.lower(): asset for asset in chain.assets if asset.contract}
        self._unasked = set(self._tokens.values())
        self._coin = next((asset for asset in chain.assets if asset.contract is None), None)

    async def check(self) -> None:
        """Raise WrongChain unless the chain id and, the first time, the decimals of the tokens are as configured."""
        async with self._asked() as node:
            answered = await node.eth.chain_id
        if answered != self._chain.chain_id:
            raise WrongChain(f"{self._chain.name}: the node's chain id is {answered}, not {self._chain.chain_id}")
        for asset in sorted(self._unasked, key=lambda asset: asset.symbol):
            told = await self._decimals(asset)
            if told != asset.decimals:
                raise WrongChain(f"{self._chain.name}: {asset.symbol} has {told} decimals, not {asset.decimals}")
            self._unasked.remove(asset)

    async def head(self) -> Block:
        """Return the newest block."""
        async with self._asked() as node:
            return _block(await node.eth.get_block("latest"))

    async def hash_of(self, number: int) -> str | None:
        """Return the hash of the block at a height."""
        from web3.exceptions import BlockNotFound  # noqa: PLC0415 - memory

        async with self._asked() as node:
            try:
                return _block(await node.eth.get_block(number)).hash
            except BlockNotFound:
                return None

    async def transfers(self, first: int, last: int, addresses: Collection[str]) -> Sequence[Transfer]:
        """Return what came to the addresses in blocks first to last. What waits for a block is not known here."""
        ours = {address.lower(): address for address in addresses}
        async with self._asked() as node:
            found = await self._token_transfers(node, first, last, ours) if self._tokens and ours else []
            if self._coin is not None and ours:
                found += await self._coin_transfers(node, first, last, ours)
        return found

    async def transaction(self, tx: str, addresses: Collection[str]) -> Sequence[Transfer] | None:
        """Return what a transaction brings to the addresses; None for one that is nowhere, or brings nothing yet.

        What a transaction that waits for a block will write into its logs nobody knows: its tokens are not told of.
        """
        from web3.exceptions import TransactionNotFound  # noqa: PLC0415 - memory

        ours = {address.lower(): address for address in addresses}
        async with self._asked() as node:
            try:
                sent = await node.eth.get_transaction(cast("Any", tx))
            except TransactionNotFound:
                return None
            try:
                receipt = await node.eth.get_transaction_receipt(cast("Any", tx))
            except TransactionNotFound:
                return self._plain(sent, None, ours) or None
            if receipt["status"] != 1:
                return []
            block = _block(await node.eth.get_block(receipt["blockNumber"]))
            self._same(receipt, block)
            found = self._plain(sent, block, ours)
            return found + [one for log in receipt["logs"] if (one := self._token(log, block, ours)) is not None]

    async def close(self) -> None:
        """Close the connections; another question opens new ones."""
        node, self._node = self._node, None
        if node is not None:
            await node.provider.disconnect()

    async def _decimals(self, asset: Asset) -> int | None:
        """Return what a token's contract says; None when nothing there says it."""
        from web3.exceptions import ContractLogicError  # noqa: PLC0415 - memory

        async with self._asked() as node:
            try:
                told = bytes(await node.eth.call(cast("Any", {"to": asset.contract, "data": DECIMALS})))
            except ContractLogicError:
                return None
        return int.from_bytes(told) if len(told) == _WORD else None

    async def _token_transfers(
        self, node: "AsyncWeb3[Any]", first: int, last: int, ours: dict[str, str]
    ) -> list[Transfer]:
        asked: Any = {
            "fromBlock": first,
            "toBlock": last,
            "address": [asset.contract for asset in self._tokens.values()],
            "topics": [TRANSFER, None, [f"0x{address[2:]:0>64}" for address in ours]],
        }
        blocks: dict[int, Block] = {}
        found: list[Transfer] = []
        for log in await node.eth.get_logs(asked):
            number: int = log["blockNumber"]
            if number not in blocks:
                blocks[number] = _block(await node.eth.get_block(number))
            transfer = self._token(log, blocks[number], ours)
            if transfer is not None and _hex(log["blockHash"]) == blocks[number].hash:
                found.append(transfer)
        return found

    def _token(self, log: Any, block: Block, ours: dict[str, str]) -> Transfer | None:
        """Return the transfer that a log tells of; None for any log that is not exactly one of ours."""
        asset = self._tokens.get(str(log["address"]).lower())
        topics = [bytes(topic) for topic in log["topics"]]
        data = bytes(log["data"])
        if asset is None or log.get("removed") or len(topics) != _TOPICS or len(data) != _WORD:
            return None
        to = ours.get(f"0x{topics[2][-_ADDRESS:].hex()}")
        amount = int.from_bytes(data)
        if topics[0].hex() != TRANSFER[2:] or to is None or amount == 0:
            return None
        sender = f"0x{topics[1][-_ADDRESS:].hex()}"
        return Transfer(_hex(log["transactionHash"]), log["logIndex"], asset.symbol, to, amount, sender, block)

    async def _coin_transfers(
        self, node: "AsyncWeb3[Any]", first: int, last: int, ours: dict[str, str]
    ) -> list[Transfer]:
        found: list[Transfer] = []
        gained: dict[tuple[int, str], int] = {}  # by plain values less what our addresses spent
        blocks: list[Block] = []
        for number in range(first, last + 1):
            raw: Any = await node.eth.get_block(number, full_transactions=True)
            blocks.append(_block(raw))
            for tx in raw["transactions"]:
                sender, to = str(tx["from"]).lower(), str(tx.get("to") or "").lower()
                if sender not in ours and (to not in ours or not tx["value"]):
                    continue
                receipt = await node.eth.get_transaction_receipt(tx["hash"])
                self._same(receipt, blocks[-1])
                moved: int = tx["value"] if receipt["status"] == 1 else 0
                if sender in ours:
                    spent = moved + receipt["gasUsed"] * receipt["effectiveGasPrice"]
                    gained[number, sender] = gained.get((number, sender), 0) - spent
                if to in ours and moved:
                    gained[number, to] = gained.get((number, to), 0) + moved
                    found += self._plain(tx, blocks[-1], ours)
        return found + await self._by_balance(node, blocks, gained, ours)

    async def _by_balance(
        self, node: "AsyncWeb3[Any]", blocks: Sequence[Block], gained: dict[tuple[int, str], int], ours: dict[str, str]
    ) -> list[Transfer]:
        """Return what the addresses gained beyond what transactions brought them. Old balances need a node's help."""
        from web3.exceptions import Web3RPCError  # noqa: PLC0415 - memory

        coin = self._coin
        if coin is None or not blocks:
            return []

        async def balance(address: str, number: int) -> int:
            return await node.eth.get_balance(cast("Any", address), max(number, 0))

        found: list[Transfer] = []
        try:
            for key, address in ours.items():
                before = await balance(address, blocks[0].number - 1)
                after = await balance(address, blocks[-1].number)
                if after - before == sum(gained.get((block.number, key), 0) for block in blocks):
                    continue
                for block in blocks:
                    now = await balance(address, block.number)
                    extra = now - before - gained.get((block.number, key), 0)
                    if extra > 0:
                        name = f"{block.hash}/{address}"
                        found.append(Transfer(name, BY_BALANCE, coin.symbol, address, extra, None, block))
                    before = now
        except Web3RPCError:
            UNRECONCILED.labels(self._chain.name).inc()
        return found

    def _same(self, receipt: Any, block: Block) -> None:
        """Raise Transient unless a receipt is of this very block: peers behind one address may be on two forks."""
        if _hex(receipt["blockHash"]) != block.hash:
            raise Transient(f"{self._chain.name}: the node tells of two different blocks {block.number}")

    def _plain(self, tx: Any, block: Block | None, ours: dict[str, str]) -> list[Transfer]:
        to = ours.get(str(tx.get("to") or "").lower())
        if self._coin is None or to is None or not tx["value"]:
            return []
        return [Transfer(_hex(tx["hash"]), PLAIN, self._coin.symbol, to, tx["value"], str(tx["from"]).lower(), block)]

    @asynccontextmanager
    async def _asked(self) -> AsyncGenerator["AsyncWeb3[Any]"]:
        """Ask the node; whatever goes wrong there is Transient, told without the address, which may hold a key."""
        if self._node is None:
            self._node = self._connect()
        from aiohttp import ClientError  # noqa: PLC0415 - memory
        from web3.exceptions import Web3Exception  # noqa: PLC0415 - same

        try:
            with calling(self._chain.name):
                yield self._node
        except (Web3Exception, ClientError, OSError, TimeoutError, ValueError) as error:
            raise Transient(f"{self._chain.name} does not answer: {type(error).__name__}") from None


def _block(raw: Any) -> Block:
    return Block(raw["number"], _hex(raw["hash"]), datetime.fromtimestamp(raw["timestamp"], UTC))


def _hex(value: Any) -> str:
    return f"0x{bytes(value).hex()}"
