"""Chains as one struct of arrays, the rule over them, and which rows are too broken to be judged."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from shared.contracts.data import CHAIN_SCHEMA, ChainHeader
from shared.contracts.detector import Side
from shared.errors import Invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Names = Any  # a pyarrow.StringArray: pyarrow ships no types
arrow: Any = pyarrow.compute  # its functions are made at import, which a type checker cannot see

SIDES: Final[tuple[Side, ...]] = ("unknown", "below_bid", "bid", "mid", "ask", "above_ask")

LARGEST_COUNT: Final = 1e9
"""More contracts than this in one line of one session is a fault of the source, not a market."""
LARGEST_PRICE_USD: Final = 1e7

_TICK_USD: Final = 1e-6  # prices closer than this are the same price
_EPOCH: Final = date(1970, 1, 1)
_SYMBOL: Final = re.compile(r"[A-Z0-9^_$][A-Z0-9._^/$-]{0,19}")
_CONTRACT: Final = r"^[A-Z0-9^_$][A-Z0-9._^/$-]{0,19}[0-9]{6}[CP][0-9]{8}$"
"""OCC's symbol without padding: root, yymmdd, right, strike in thousandths."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Barchart's rule for US options (barchart.com/options/unusual-activity): all four must hold.

    volume > `volume`, open interest > `open_interest`, last > `last_usd`, volume / open interest >= `ratio`.
    """

    volume: float = 500
    open_interest: float = 100
    last_usd: float = 0.10
    ratio: float = 1.25


def check_header(header: ChainHeader) -> None:
    """Raise Invalid when nothing can be said about a chain: its symbol is not one."""
    if not _SYMBOL.fullmatch(header.symbol):
        raise Invalid(
            "the chain's symbol is not a ticker: at most 20 capital letters, digits or any of . _ ^ / $ -",
            symbol=header.symbol[:40],
        )


@dataclass(frozen=True, slots=True)
class Chains:
    """Many chains as one struct of arrays; contract rows of chain i are `offsets[i]` to `offsets[i + 1]`."""

    headers: Sequence[ChainHeader]
    offsets: Ints
    table: Any  # a pyarrow.Table

    @classmethod
    def of(cls, chains: Sequence[tuple[ChainHeader, Any]]) -> "Chains":
        """Lay chains, each a header and a table of `CHAIN_SCHEMA`, end to end without copying a column."""
        sizes = [table.num_rows for _, table in chains]
        tables = [table for _, table in chains] or [CHAIN_SCHEMA.empty_table()]
        offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)
        return cls([header for header, _ in chains], offsets, pa.concat_tables(tables))

    def __len__(self) -> int:
        """How many contracts there are."""
        return int(self.offsets[-1])

    def floats(self, name: str) -> Floats:
        """Return a column; null reads as NaN."""
        return cast("Floats", self.table.column(name).to_numpy())

    def nans(self, name: str, values: Floats) -> int:
        """How many values are NaN without being null: null is "none", NaN is a fault."""
        return int(np.isnan(values).sum()) - self.table.column(name).null_count

    def days(self, name: str, rows: Ints) -> Ints:
        """Return a date column's values at `rows`, as days since 1970."""
        return self.take(name, rows).cast(pa.int32()).to_numpy().astype(np.int64)

    def take(self, name: str, rows: Ints) -> Names:
        """Return a column's values at `rows`, in one piece."""
        taken = self.table.column(name).combine_chunks().take(pa.array(rows))
        return taken.combine_chunks() if isinstance(taken, pa.ChunkedArray) else taken

    def chain_of(self, rows: Ints) -> Ints:
        """Return the number of the chain that each row belongs to."""
        return np.searchsorted(self.offsets, rows, side="right").astype(np.int64) - 1

    def sessions(self) -> Ints:
        """Return each chain's session as days since 1970."""
        return np.array([(header.session - _EPOCH).days for header in self.headers], dtype=np.int64)

    def closes(self) -> Floats:
        """Return each chain's underlying price in USD, NaN where it has none."""
        closes = (header.close for header in self.headers)
        return np.array([np.nan if close is None or not is_price(close) else close for close in closes])


@dataclass(frozen=True, slots=True)
class Found:
    """The contracts that met the rule, in the order of their chains, and everything that was left out.

    `traded` are the rows with volume today: what the next snapshot is compared with.
    `faults` maps a chain's number to its counts by reason.
    """

    chain: Ints
    contracts: Names
    volume: Floats
    open_interest: Floats
    last: Floats
    bid: Floats
    ask: Floats
    strike: Floats
    expiration: Ints  # days since 1970
    is_call: Mask
    iv: Floats
    dte: Ints
    otm_pct: Floats  # NaN when the chain has no underlying price
    side: Ints  # position in SIDES
    traded: "Traded"
    faults: Mapping[int, Mapping[str, int]]

    def __len__(self) -> int:
        """How many contracts were found."""
        return len(self.chain)


@dataclass(frozen=True, slots=True)
class Traded:
    """Contracts that exist and have volume today, in the order of their chains."""

    rows: Ints
    chain: Ints
    contracts: Names
    volume: Ints
    dte: Ints

    def of_chain(self, number: int) -> "tuple[Names, Ints]":
        """Return one chain's contracts and volumes."""
        start, end = np.searchsorted(self.chain, [number, number + 1])
        return self.contracts.slice(start, end - start), self.volume[start:end]


def detect(chains: Chains, rule: Rule) -> Found:
    """Apply `rule` to every contract of `chains`.

    Left out and counted: NaN or absurd numbers, negative volume or open interest, expired contracts, names
    that are no OCC symbol, a second row of one contract, and volume without open interest. A crossed quote is
    counted too, but only costs the contract its side.
    """
    numbers = {name: chains.floats(name) for name in ("volume", "open_interest", "last", "bid", "ask")}
    faults = _Faults(chains)
    with np.errstate(invalid="ignore"):  # NaN meets no condition, which is what it should do
        faults.add_numbers(numbers, rule)
        traded = _traded(chains, numbers["volume"], faults)
        volume, interest, last = (numbers[name][traded.rows] for name in ("volume", "open_interest", "last"))
        met = (volume > rule.volume) & (interest > max(rule.open_interest, 0)) & (interest <= LARGEST_COUNT)
        met &= (last > rule.last_usd) & (last <= LARGEST_PRICE_USD)
        met[met] = volume[met] / interest[met] >= rule.ratio

    rows, chain, dte = traded.rows[met], traded.chain[met], traded.dte[met]
    bid, ask = numbers["bid"][rows], numbers["ask"][rows]
    strike = chains.take("strike", rows).to_numpy()
    is_call = arrow.equal(chains.take("right", rows), "C").to_numpy(zero_copy_only=False)
    close = chains.closes()[chain]
    return Found(
        chain=chain,
        contracts=traded.contracts.filter(pa.array(met)),
        volume=volume[met],
        open_interest=interest[met],
        last=last[met],
        bid=bid,
        ask=ask,
        strike=strike,
        expiration=dte + chains.sessions()[chain],
        is_call=is_call,
        iv=chains.take("iv", rows).to_numpy(zero_copy_only=False).astype(np.float64),
        dte=dte,
        otm_pct=np.where(is_call, strike - close, close - strike) / close * 100.0,
        side=side_of_quote(bid, ask, last[met]),
        traded=traded,
        faults=faults.by_chain(),
    )


class _Faults:
    """Counts of broken rows by reason and chain."""

    def __init__(self, chains: Chains) -> None:
        self._chains = chains
        self._counts: dict[int, dict[str, int]] = {}

    def add(self, reason: str, broken: Mask) -> None:
        """Count the rows where `broken` holds, given for every row."""
        self.add_rows(reason, np.flatnonzero(broken))

    def add_numbers(self, numbers: Mapping[str, Floats], rule: Rule) -> None:
        """Count what is wrong with the numbers of every row."""
        volume, interest, last = numbers["volume"], numbers["open_interest"], numbers["last"]
        for name, values in numbers.items():
            if self._chains.nans(name, values):
                null = self._chains.table.column(name).is_null().to_numpy()
                self.add(f"nan_{name}", np.isnan(values) & ~null)
        self.add("negative_volume", volume < 0)
        self.add("negative_open_interest", interest < 0)
        absurd = (volume > LARGEST_COUNT) | (interest > LARGEST_COUNT) | (last > LARGEST_PRICE_USD)
        self.add("absurd_number", absurd)
        self.add("zero_open_interest", (interest == 0) & (volume > rule.volume))
        self.add("crossed_quote", numbers["bid"] > numbers["ask"])

    def add_rows(self, reason: str, rows: Ints) -> None:
        """Count the rows named."""
        if not len(rows):
            return
        numbers, counts = np.unique(self._chains.chain_of(rows), return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            self._counts.setdefault(number, {})[reason] = count

    def by_chain(self) -> Mapping[int, Mapping[str, int]]:
        """Return chain number -> reason -> rows."""
        return self._counts


def _traded(chains: Chains, volume: Floats, faults: _Faults) -> Traded:
    """Return the rows with volume that name a contract which still exists, once; count the others."""
    rows = np.flatnonzero((volume > 0) & (volume <= LARGEST_COUNT))
    chain = chains.chain_of(rows)
    names, right = chains.take("contract", rows), chains.take("right", rows)
    strike = chains.take("strike", rows).to_numpy(zero_copy_only=False)
    dte = chains.days("expiration", rows) - chains.sessions()[chain]

    named = arrow.match_substring_regex(names, _CONTRACT)
    known = arrow.or_(arrow.equal(right, "C"), arrow.equal(right, "P"))
    ok: Mask = arrow.fill_null(arrow.and_kleene(named, known), False).to_numpy(zero_copy_only=False)
    ok = ok & (strike > 0) & (strike <= LARGEST_PRICE_USD)
    faults.add_rows("not_a_contract", rows[~ok])
    expired = ok & (dte < 0)
    faults.add_rows("expired", rows[expired])
    ok &= ~expired
    repeated = ok & _repeats(names, chain)
    faults.add_rows("repeated", rows[repeated])
    ok &= ~repeated
    if ok.all():
        return Traded(rows, chain, names, volume[rows].astype(np.int64), dte)
    rows = rows[ok]
    return Traded(rows, chain[ok], names.filter(pa.array(ok)), volume[rows].astype(np.int64), dte[ok])


def _repeats(names: Names, chain: Ints) -> Mask:
    """Say which names stand a second time in their chain."""
    codes = names.dictionary_encode()
    again = np.zeros(len(names), dtype=np.bool_)
    if len(codes.dictionary) == len(names):
        return again
    index = arrow.fill_null(codes.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    order = np.lexsort((index, chain))  # stable: the first row of a name stays first
    again[order[1:]] = (index[order][1:] == index[order][:-1]) & (chain[order][1:] == chain[order][:-1])
    return again


def side_of_quote(bid: Floats, ask: Floats, last: Floats) -> Ints:
    """Return where the last trade stands against the quote, as positions in `SIDES`.

    Between the two is "mid", and so is a locked quote; a quote that is missing, negative, without an ask or
    crossed says nothing. The last trade may be older than the quote: a snapshot cannot tell.
    """
    with np.errstate(invalid="ignore"):
        unknown = ~((bid >= 0) & (ask > 0) & (bid <= ask + _TICK_USD) & np.isfinite(last) & np.isfinite(ask))
        locked = (np.abs(ask - bid) <= _TICK_USD) & (np.abs(last - ask) <= _TICK_USD)
        choices = (
            (unknown, "unknown"),
            (locked, "mid"),
            (last > ask + _TICK_USD, "above_ask"),
            (last >= ask - _TICK_USD, "ask"),
            (last < bid - _TICK_USD, "below_bid"),
            (last <= bid + _TICK_USD, "bid"),
        )
    names = [SIDES.index(side) for _, side in choices]
    return np.select([mask for mask, _ in choices], names, default=SIDES.index("mid")).astype(np.int64)


def is_price(value: float) -> bool:
    """Say whether `value` can be a price in USD: above 0, finite, not absurd."""
    return 0 < value <= LARGEST_PRICE_USD
