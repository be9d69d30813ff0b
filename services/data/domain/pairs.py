"""Quotes of crypto pairs, and a simulated market of them.

The simulated market follows from (seed, currency, time) alone: a currency is worth so many dollars, a level times waves
whose lengths are minutes to months, and a pair is one currency in the other. So BTC/USD, ETH/USD and ETH/BTC agree, and
so do two processes, at any moment and over restarts.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

import numpy as np

from services.data.domain.chain import fact_id
from shared.contracts.quotes import PairQuoted
from shared.contracts.symbols import PAIR
from shared.errors import Invalid

LARGEST: Final = Decimal("1e12")
LEVELS_USD: Final[Mapping[str, float]] = {
    **dict.fromkeys(("USD", "USDC", "USDT"), 1.0),
    "BTC": 90_000.0,
    "ETH": 3_000.0,
    "BCH": 500.0,
    "SOL": 150.0,
    "LTC": 90.0,
    "LINK": 15.0,
    "XRP": 2.0,
    "DOGE": 0.15,
}
"""What a simulated currency is worth in the middle; any other one dollar."""
STILL: Final = frozenset({"USD", "USDC", "USDT"})
WAVES_DAYS: Final = (1 / 288, 1 / 48, 1 / 8, 1.0, 7.0, 30.0)
A_DAY: Final = 0.02
"""How far a wave of one day goes to each side, as a share; that of another length as the root of its days."""
HALF_SPREAD: Final = 0.0002
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class PairQuote:
    """The best bid and ask of a pair, in the currency that it names second."""

    symbol: str
    as_of: datetime
    bid: Decimal
    ask: Decimal


def parse_pair(text: str) -> str:
    """Return the pair in upper case; raises Invalid for anything that is none."""
    pair = text.upper() if text.isascii() else ""
    if not PAIR.fullmatch(pair):
        raise Invalid("that is not a pair such as BTC/USD", pair=text[:32])
    return pair


def fault(quote: PairQuote, latest: datetime) -> str | None:
    """Return why a quote cannot be true, in a word; None when it may be. `latest` is as late as it can be."""
    prices = (quote.bid, quote.ask)
    if not all(price.is_finite() and 0 < price < LARGEST for price in prices):
        return "bad_price"
    if quote.bid > quote.ask:
        return "crossed"
    return "future" if quote.as_of > latest else None


def pair_quoted(quote: PairQuote, source: str, now: datetime, *, simulated: bool) -> PairQuoted:
    """Return the event that tells the quote."""
    return PairQuoted(
        id=fact_id("pair", quote.symbol, source, quote.as_of),
        time=now,
        symbol=quote.symbol,
        as_of=quote.as_of,
        source=source,
        simulated=simulated,
        bid=quote.bid,
        ask=quote.ask,
    )


def simulated(pair: str, at: datetime, seed: int) -> PairQuote:
    """Return what the simulated market says of a pair."""
    base, quote = pair.split("/")
    price = _worth_usd(base, at, seed) / _worth_usd(quote, at, seed)
    return PairQuote(pair, at, _price(price * (1 - HALF_SPREAD)), _price(price * (1 + HALF_SPREAD)))


def _worth_usd(currency: str, at: datetime, seed: int) -> float:
    level = LEVELS_USD.get(currency, 1.0)
    if currency in STILL:
        return level
    phases = np.random.default_rng([seed, zlib.crc32(currency.encode())]).uniform(0, 2 * math.pi, len(WAVES_DAYS))
    days = at.timestamp() / _DAY_S
    waves = (
        A_DAY * math.sqrt(length) * math.sin(2 * math.pi * days / length + float(phase))
        for length, phase in zip(WAVES_DAYS, phases, strict=True)
    )
    return level * math.exp(sum(waves))


def _price(value: float) -> Decimal:
    """Return a price of six significant digits."""
    return Decimal(f"{value:.6g}")
