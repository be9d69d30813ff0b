"""Bitcoin by Esplora's REST interface (github.com/Blockstream/esplora, API.md). Amounts are satoshi.

An address's transactions come newest first: those that wait (50 at most) and 25 that are in blocks, then 25 more for
each page. Reading stops at the first one below the range, so a scan costs what is new.

What would surprise you: Esplora tells no chain's name, so the hash of block 0 says which network answers.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import httpx

from services.payment.domain.addresses import Network
from services.payment.domain.crypto import Block, Transfer
from services.payment.ports import WrongChain
from shared.errors import Transient
from shared.external import Client

GENESIS: Final[Mapping[Network, str]] = {
    "mainnet": "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f",
    "testnet": "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943",
    "signet": "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6",
    "regtest": "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
}
PAGE: Final = 25

_NOT_FOUND: Final = 404


class Esplora:
    """Reads one network of Bitcoin, over pooled connections."""

    def __init__(self, base_url: str, network: Network, asset: str, *, timeout_s: float = 15.0) -> None:
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it would write addresses with their keys
        self._base = base_url.rstrip("/")
        self._network: Network = network
        self._asset = asset
        self._timeout_s = timeout_s
        self._http: httpx.AsyncClient | None = None

    async def check(self) -> None:
        """Raise WrongChain unless block 0 is that of the network."""
        if await self.hash_of(0) != GENESIS[self._network]:
            raise WrongChain(f"what answers is not Bitcoin's {self._network}")

    async def head(self) -> Block:
        """Return the newest block."""
        text = await self._text("/blocks/tip/hash")
        found = await self._json(f"/block/{text}")
        if text is None or found is None:
            raise Transient("Esplora does not know its own newest block")
        return Block(int(found["height"]), text, _time(found["timestamp"]))

    async def hash_of(self, number: int) -> str | None:
        """Return the hash of the block at a height."""
        return await self._text(f"/block-height/{number}")

    async def transfers(self, first: int, last: int, addresses: Collection[str]) -> Sequence[Transfer]:
        """Return what came to the addresses in blocks first to last, and what waits for a block."""
        found: list[Transfer] = []
        for address in addresses:
            for tx in await self._transactions(address, first):
                found += [one for one in self._received(tx, {address}) if one.block is None or one.block.number <= last]
        return found

    async def transaction(self, tx: str, addresses: Collection[str]) -> Sequence[Transfer] | None:
        """Return what a transaction brings to the addresses; None for one that is nowhere."""
        found = await self._json(f"/tx/{tx}")
        return None if found is None else self._received(found, set(addresses))

    async def close(self) -> None:
        """Close the connections; another question opens new ones."""
        client, self._http = self._http, None
        if client is not None:
            await client.aclose()

    async def _transactions(self, address: str, first: int) -> list[Any]:
        """Return the address's transactions that wait or lie in block `first` or above, perhaps a few more."""
        page: list[Any] = await self._json(f"/address/{address}/txs") or []
        found = list(page)
        while True:
            deep = [tx for tx in page if tx["status"]["confirmed"]]
            if len(deep) < PAGE or deep[-1]["status"]["block_height"] < first:
                return [tx for tx in found if not tx["status"]["confirmed"] or tx["status"]["block_height"] >= first]
            page = await self._json(f"/address/{address}/txs/chain/{deep[-1]['txid']}") or []
            found += page

    def _received(self, tx: Any, addresses: Collection[str]) -> list[Transfer]:
        status = tx["status"]
        block = None
        if status["confirmed"]:
            block = Block(status["block_height"], status["block_hash"], _time(status["block_time"]))
        previous = (tx["vin"][0].get("prevout") or {}) if tx["vin"] else {}
        sender: str | None = previous.get("scriptpubkey_address")
        return [
            Transfer(tx["txid"], index, self._asset, out["scriptpubkey_address"], int(out["value"]), sender, block)
            for index, out in enumerate(tx["vout"])
            if out.get("scriptpubkey_address") in addresses and out["value"] > 0
        ]

    async def _json(self, path: str) -> Any:
        answer = await self._get(path)
        if answer is None:
            return None
        try:
            return answer.json()
        except ValueError:
            raise Transient("Esplora's answer is not JSON") from None

    async def _text(self, path: str) -> str | None:
        answer = await self._get(path)
        return None if answer is None else answer.text.strip()

    async def _get(self, path: str) -> httpx.Response | None:
        if self._http is None:
            self._http = Client("esplora", timeout=self._timeout_s, headers={"user-agent": "Openbell (payment)"})
        try:
            answer = await self._http.get(self._base + path)
        except httpx.HTTPError as error:
            raise Transient(f"Esplora is not reachable: {type(error).__name__}") from None
        if answer.status_code == _NOT_FOUND:
            return None
        if not answer.is_success:
            raise Transient(f"Esplora answered {answer.status_code}")
        return answer


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
