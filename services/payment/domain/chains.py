"""Chains that payments come in on: their assets, our addresses there, and how deep a payment must lie."""

import re
from decimal import Decimal
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from services.payment.domain.addresses import Network, bitcoin_problem, evm_problem

Kind = Literal["evm", "bitcoin"]
Symbol = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9.]{1,11}$")]
ChainName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]

_TX: Final = {
    "evm": re.compile(r"0x[0-9a-f]{64}", re.ASCII),
    "bitcoin": re.compile(r"[0-9a-f]{64}", re.ASCII),
}


class Depth(BaseModel):
    """How many confirmations a payment of up to so many USD needs; the last one has no bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    up_to_usd: Decimal | None = Field(default=None, gt=0)
    blocks: int = Field(ge=1, le=10_000)


_DEPTHS: Final[dict[Kind, tuple[Depth, ...]]] = {
    "bitcoin": (
        Depth(up_to_usd=Decimal(100), blocks=1),
        Depth(up_to_usd=Decimal(1_000), blocks=2),
        Depth(blocks=6),
    ),
    "evm": (
        Depth(up_to_usd=Decimal(100), blocks=6),
        Depth(up_to_usd=Decimal(1_000), blocks=12),
        Depth(blocks=32),
    ),
}
_FINAL_BLOCKS: Final[dict[Kind, int]] = {"bitcoin": 12, "evm": 64}
_RESCAN_BLOCKS: Final[dict[Kind, int]] = {"bitcoin": 6, "evm": 3}

_COIN_DECIMALS: Final[dict[Kind, int]] = {"bitcoin": 8, "evm": 18}
"""Esplora tells satoshi; nodes tell wei."""


class Asset(BaseModel):
    """What is paid with: the chain's coin, or a token by its contract. A stablecoin counts as one USD."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbol: Symbol
    decimals: int = Field(ge=0, le=36)
    contract: str | None = None
    stable: bool = False

    @property
    def step(self) -> int:
        """The least difference between two amounts that people are asked for: eight decimals at most."""
        return int(10 ** max(0, self.decimals - 8))


class Chain(BaseModel):
    """A chain. Invoices take an address of `addresses` each; when none is free, an exact amount on `shared_address`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: ChainName
    kind: Kind
    chain_id: int | None = Field(default=None, gt=0)
    network: Network = "mainnet"
    assets: tuple[Asset, ...] = Field(min_length=1)
    shared_address: str | None = None
    addresses: tuple[str, ...] = ()
    confirmations: tuple[Depth, ...] = ()
    final_blocks: int = Field(default=0, ge=0)
    rescan_blocks: int = Field(default=-1, ge=-1)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "evm") != (self.chain_id is not None):
            raise ValueError("a chain of kind evm, and no other, has a chain_id")
        if not self.our_addresses:
            raise ValueError("give a shared_address, or addresses, or both")
        if len(set(self.our_addresses)) < len(self.our_addresses):
            raise ValueError("an address stands there twice")
        if len({asset.symbol for asset in self.assets}) < len(self.assets):
            raise ValueError("an asset stands there twice")
        coins = [asset for asset in self.assets if asset.contract is None]
        if any(coin.decimals != _COIN_DECIMALS[self.kind] for coin in coins):
            raise ValueError(f"the coin of a chain of kind {self.kind} has {_COIN_DECIMALS[self.kind]} decimals")
        contracts = [asset.contract for asset in self.assets if asset.contract is not None]
        if len(coins) > 1:
            raise ValueError("a chain has one coin; tokens name their contract")
        if contracts and self.kind != "evm":
            raise ValueError("only a chain of kind evm has tokens")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        contracts = (asset.contract for asset in self.assets if asset.contract is not None)
        for address in (*self.our_addresses, *contracts):
            if problem := self.address_problem(address):
                raise ValueError(f"{address}: {problem}")
            if self.kind == "bitcoin" and address.isupper():
                raise ValueError(f"{address}: write it in small letters, as what reads the chain does")
        return self

    @model_validator(mode="after")
    def _deep_enough(self) -> Self:
        bounds = [depth.up_to_usd for depth in self.depths]
        rising = [bound for bound in bounds[:-1] if bound is not None]
        if bounds[-1] is not None or len(rising) < len(bounds) - 1 or rising != sorted(set(rising)):
            raise ValueError("confirmations rise by up_to_usd, and the last has none")
        if self.finality < max(depth.blocks for depth in self.depths):
            raise ValueError("final_blocks is less than the confirmations that a payment needs")
        return self

    @property
    def network_id(self) -> int | str:
        """Which chain it is, whatever it is called here."""
        return self.network if self.chain_id is None else self.chain_id

    @property
    def our_addresses(self) -> tuple[str, ...]:
        """All addresses that payments may go to."""
        return (*self.addresses, *((self.shared_address,) if self.shared_address else ()))

    @property
    def depths(self) -> tuple[Depth, ...]:
        """The confirmations that payments need, by amount."""
        return self.confirmations or _DEPTHS[self.kind]

    @property
    def finality(self) -> int:
        """Below so many blocks nothing is looked at again."""
        return self.final_blocks or _FINAL_BLOCKS[self.kind]

    @property
    def rescan(self) -> int:
        """So many blocks are read again each time, for a node may have told them too early."""
        return self.rescan_blocks if self.rescan_blocks >= 0 else _RESCAN_BLOCKS[self.kind]

    def confirmations_for(self, price_usd: Decimal) -> int:
        """Return how many confirmations a payment needs; its own block is the first."""
        fitting = (depth.blocks for depth in self.depths if depth.up_to_usd is None or price_usd <= depth.up_to_usd)
        return next(fitting)

    def asset(self, symbol: str) -> Asset | None:
        """Return the asset of that name."""
        return next((asset for asset in self.assets if asset.symbol == symbol), None)

    def address_problem(self, address: str) -> str | None:
        """Return why this is no address of the chain; None when it is one."""
        return evm_problem(address) if self.kind == "evm" else bitcoin_problem(address, self.network)

    def transaction(self, tx: str) -> str | None:
        """Return a transaction's id as the chain writes it; None for what cannot be one."""
        written = tx.strip().lower()
        if self.kind == "evm" and not written.startswith("0x"):
            written = f"0x{written}"
        return written if _TX[self.kind].fullmatch(written) else None

    def pay_uri(self, symbol: str, address: str, amount: int) -> str | None:
        """Return what a wallet opens to pay base units: BIP 21 for Bitcoin, EIP-681 for EVM chains."""
        asset = self.asset(symbol)
        if asset is None:
            return None
        if self.kind == "bitcoin":
            return f"bitcoin:{address}?amount={Decimal(amount).scaleb(-asset.decimals):f}"
        if asset.contract is None:
            return f"ethereum:{address}@{self.chain_id}?value={amount}"
        return f"ethereum:{asset.contract}@{self.chain_id}/transfer?address={address}&uint256={amount}"
