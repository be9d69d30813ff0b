"""A stand-in for Esplora (Blockstream's API.md): a real HTTP server over a chain of blocks that can be reorganised.

    async with FakeEsplora() as esplora:
        tx = esplora.send({ADDRESS: 29_000})      # waits in the mempool
        esplora.mine()                            # is in a block, with one confirmation
        esplora.reorganise(1)                     # the newest block is gone, its transactions wait again
        esplora.replace(tx, {ADDRESS: 1_000})     # RBF: another transaction takes its place
        esplora.forget(tx)                        # dropped from the mempool

It pages as documented: what waits and 25 confirmed at /address/:a/txs, 25 more at /address/:a/txs/chain/:last.
"""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from aiohttp.test_utils import TestServer

from services.payment.adapters.esplora import GENESIS

PAGE = 25
SENDER = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"


@dataclass
class Tx:
    """A transaction: outputs in order, and the height of its block."""

    txid: str
    outs: list[tuple[str, int]]
    height: int | None = None


@dataclass
class Block:
    """A block."""

    hash: str
    time: int
    txs: list[Tx] = field(default_factory=list[Tx])


class FakeEsplora:
    """A chain over HTTP on 127.0.0.1, between `async with` and its end. `now` is Unix time, for the next block."""

    def __init__(self, now: float, *, genesis: str = GENESIS["regtest"]) -> None:
        self.now = int(now)
        self.fail: int | None = None
        """Answer everything with this status."""
        self.requests: list[str] = []
        self._numbers = itertools.count(1)
        self._blocks = [Block(genesis, self.now)]
        self._waiting: list[Tx] = []
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._server = TestServer(app)

    @property
    def url(self) -> str:
        """Where it answers."""
        return str(self._server.make_url("")).rstrip("/")

    @property
    def height(self) -> int:
        """Of the newest block."""
        return len(self._blocks) - 1

    def send(self, *outs: Mapping[str, int]) -> str:
        """Send a transaction with these outputs; return its id."""
        tx = Tx(self._name("tx"), [pair for out in outs for pair in out.items()])
        self._waiting.append(tx)
        return tx.txid

    def mine(self, blocks: int = 1) -> None:
        """Mine; what waits goes into the first block."""
        for _ in range(blocks):
            self.now += 1
            block = Block(self._name("block"), self.now, self._waiting)
            self._waiting = []
            self._blocks.append(block)
            for tx in block.txs:
                tx.height = self.height

    def reorganise(self, depth: int) -> None:
        """Take the newest blocks away; their transactions wait again."""
        for _ in range(depth):
            for tx in self._blocks.pop().txs:
                tx.height = None
                self._waiting.append(tx)

    def forget(self, txid: str) -> None:
        """Drop a transaction that waits."""
        self._waiting = [tx for tx in self._waiting if tx.txid != txid]

    def replace(self, txid: str, *outs: Mapping[str, int]) -> str:
        """Replace a transaction that waits by another (RBF)."""
        self.forget(txid)
        return self.send(*outs)

    async def __aenter__(self) -> Self:
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    def _name(self, kind: str) -> str:
        return hashlib.sha256(f"{kind} {next(self._numbers)} {id(self)}".encode()).hexdigest()

    async def _answer(self, request: web.Request) -> web.Response:  # noqa: PLR0911 - a table of routes
        self.requests.append(request.path)
        if self.fail is not None:
            return web.Response(status=self.fail)
        match request.path.strip("/").split("/"):
            case ["blocks", "tip", "hash"]:
                return web.Response(text=self._blocks[-1].hash)
            case ["block-height", number] if int(number) <= self.height:
                return web.Response(text=self._blocks[int(number)].hash)
            case ["block", name]:
                for height, block in enumerate(self._blocks):
                    if block.hash == name:
                        return web.json_response({"id": name, "height": height, "timestamp": block.time})
            case ["tx", txid]:
                for tx in self._all():
                    if tx.txid == txid:
                        return web.json_response(self._json(tx))
            case ["address", address, "txs"]:
                waiting = [tx for tx in self._waiting if self._pays(tx, address)]
                return web.json_response([self._json(tx) for tx in [*waiting[:50], *self._deep(address)[:PAGE]]])
            case ["address", address, "txs", "chain", last]:
                deep = self._deep(address)
                after = next(index for index, tx in enumerate(deep) if tx.txid == last) + 1
                return web.json_response([self._json(tx) for tx in deep[after : after + PAGE]])
            case _:
                pass
        return web.Response(status=404, text="not found")

    def _all(self) -> list[Tx]:
        return [*self._waiting, *(tx for block in reversed(self._blocks) for tx in reversed(block.txs))]

    def _deep(self, address: str) -> list[Tx]:
        return [tx for tx in self._all() if tx.height is not None and self._pays(tx, address)]

    @staticmethod
    def _pays(tx: Tx, address: str) -> bool:
        return any(to == address for to, _ in tx.outs)

    def _json(self, tx: Tx) -> dict[str, Any]:
        status: dict[str, Any] = {"confirmed": False}
        if tx.height is not None:
            block = self._blocks[tx.height]
            status = {
                "confirmed": True,
                "block_height": tx.height,
                "block_hash": block.hash,
                "block_time": block.time,
            }
        return {
            "txid": tx.txid,
            "vin": [{"txid": "00" * 32, "vout": 0, "prevout": {"scriptpubkey_address": SENDER, "value": 10**9}}],
            "vout": [
                *({"scriptpubkey_address": to, "value": value} for to, value in tx.outs),
                {"scriptpubkey_type": "op_return", "value": 0},
            ],
            "status": status,
        }
