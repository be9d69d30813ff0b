"""From rows as a source sends them to a clean table of `CHAIN_SCHEMA`, and what was dropped why.

A faulty row costs itself, never the chain. Faulty is what makes a row lie: a name that is no contract, volume
or open interest missing or impossible, a price below zero or not a number. A missing price, IV or greek is
null; an IV of 0 is the source's way of saying that it has none, so it is null too.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from services.data.domain.columns import Flags, Floats, dates, numbers, strings
from services.data.domain.symbols import occ_columns
from shared.contracts.data import CHAIN_SCHEMA, ChainHeader
from shared.contracts.quotes import QuoteTaken, Source

MAX_PRICE_USD: Final = 10_000_000.0
MAX_CONTRACTS: Final = 1_000_000_000.0
MAX_IV: Final = 100.0
_COUNTS: Final = ("volume", "open_interest")
_PRICES: Final = ("bid", "ask", "last")
_GREEKS: Final = ("delta", "gamma", "theta", "vega")
_BAD: Final = math.inf  # stands for a value that is there and wrong; NaN stands for one that is not there
_NAMESPACE: Final = uuid5(NAMESPACE_URL, "https://openbell.invalid/data")


@dataclass(frozen=True, slots=True)
class Validators:
    """What makes the next request conditional (RFC 9110, section 13)."""

    etag: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One underlying's chain as a source told it, cleaned. `dropped` counts faulty rows by reason."""

    header: ChainHeader
    contracts: pa.Table
    validators: Validators = Validators()
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True, slots=True)
class Quote:
    """An underlying's quote at one moment, USD a share."""

    symbol: str
    as_of: datetime
    source: Source
    simulated: bool
    close: float | None
    bid: float | None
    ask: float | None


def fact_id(kind: str, symbol: str, source: str, as_of: datetime) -> UUID:
    """Return the id of what `source` said of `symbol` at `as_of`: asked twice, it is the same fact."""
    return uuid5(_NAMESPACE, f"{kind}/{symbol}/{source}/{as_of.isoformat()}")


def quote_taken(quote: Quote, now: datetime) -> QuoteTaken:
    """Return the event that tells the quote."""
    return QuoteTaken(
        id=fact_id("quote", quote.symbol, quote.source, quote.as_of),
        time=now,
        symbol=quote.symbol,
        as_of=quote.as_of,
        source=quote.source,
        simulated=quote.simulated,
        close=quote.close,
        bid=quote.bid,
        ask=quote.ask,
    )


def clean_chain(  # pyright: ignore[reportUnknownParameterType] - pyarrow ships no types
    rows: Sequence[Any], fields: Mapping[str, str], session: date
) -> tuple[pa.Table, Counter[str]]:
    """Return the good rows as a table of CHAIN_SCHEMA, and how many were dropped for which reason.

    `fields` names the source's key of each column ("contract", "bid", ... "vega"). Contracts that expired
    before `session` and repeated ones are dropped as well; the first of a repeated contract stays.
    """
    dropped: Counter[str] = Counter()
    named = [row for row in rows if isinstance(row, dict) and isinstance(row.get(fields["contract"]), str)]
    dropped["not_an_object"] = len(rows) - len(named)
    names = [row[fields["contract"]] for row in named]
    occ = occ_columns(names)
    columns = {
        name: np.fromiter((_number(row.get(fields[name])) for row in named), np.float64, len(named))
        for name in (*_COUNTS, *_PRICES, "iv", *_GREEKS)
    }
    keep = np.ones(len(named), np.bool_)
    keep = _drop(dropped, "not_occ", keep, ~occ.valid)
    keep = _drop(dropped, "expired", keep, occ.expiration < np.datetime64(session))
    for name in _COUNTS:
        keep = _drop(dropped, f"bad_{name}", keep, ~_within(columns[name], MAX_CONTRACTS))
    for name in _PRICES:
        there = ~np.isnan(columns[name])
        keep = _drop(dropped, f"bad_{name}", keep, there & ~_within(columns[name], MAX_PRICE_USD))
    keep = _drop(dropped, "repeated", keep, _repeated(names, keep))
    iv = columns["iv"]
    columns["iv"] = np.where((iv > 0) & (iv <= MAX_IV), iv, np.nan)
    kept = np.flatnonzero(keep)
    arrays = {
        "contract": strings([names[int(index)] for index in kept]),
        "expiration": dates(occ.expiration[kept]),
        "right": strings(occ.right[kept].tolist()),
        "strike": numbers(occ.strike[kept]),
        **{name: numbers(values[kept]) for name, values in columns.items()},
    }
    table = pa.Table.from_arrays([arrays[name] for name in CHAIN_SCHEMA.names], schema=CHAIN_SCHEMA)
    return table, Counter({reason: count for reason, count in dropped.items() if count})


def price(value: Any) -> float | None:
    """Return an underlying's price, or None when it is missing or cannot be one."""
    number = _number(value)
    return number if 0 < number <= MAX_PRICE_USD else None


def _number(value: Any) -> float:
    """Return the number; NaN for a missing one, infinity for what is there and is not a number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else _BAD
    if value is None:
        return math.nan
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_CONTRACTS:
        return float(value)
    return _BAD


def _within(values: Floats, limit: float) -> Flags:
    return (values >= 0) & (values <= limit)


def _drop(dropped: Counter[str], reason: str, keep: Flags, faulty: Flags) -> Flags:
    dropped[reason] += int(np.count_nonzero(keep & faulty))
    return keep & ~faulty


def _repeated(names: Sequence[str], keep: npt.NDArray[np.bool_]) -> Flags:
    kept = np.flatnonzero(keep)
    _, first = np.unique(np.array([names[int(index)] for index in kept], dtype=object), return_index=True)
    repeated = np.zeros(len(names), np.bool_)
    repeated[kept] = True
    repeated[kept[first]] = False
    return repeated
