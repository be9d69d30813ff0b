"""A synthetic full US options market: made numbers with the shape of the real one, from a seed.

About 6,000 underlyings and 1.5 million contracts. The chains' sizes are log-normal: thousands in the largest,
tens in the smallest. Most contracts do not trade in a session; about one in a hundred meets Barchart's rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid5

import numpy as np
import pyarrow as pa

from shared.contracts.data import CHAIN_SCHEMA, ChainCollected, ChainHeader

SESSION: Final = date(2026, 7, 24)
OPENING: Final = datetime(2026, 7, 24, 13, 30, tzinfo=UTC)
UNDERLYINGS: Final = 6_000
CONTRACTS: Final = 1_500_000

_NAMESPACE: Final = UUID("6f1c7a52-0f3e-4ce5-9a55-6d2e3a1b9c10")
_LETTERS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a market to make."""

    underlyings: int = UNDERLYINGS
    contracts: int = CONTRACTS
    seed: int = 7


def ticker(number: int) -> str:
    """Return the made symbol of underlying `number`: four letters, unique below 456,976."""
    letters: list[str] = []
    for _ in range(4):
        number, letter = divmod(number, 26)
        letters.append(_LETTERS[letter])
    return "".join(reversed(letters))


def market(shape: Shape | None = None, *, minute: int = 0) -> list[ChainCollected]:
    """Return every underlying's chain as of `minute` minutes after the opening.

    The same seed gives the same contracts in every minute; the volume grows from one to the next.
    """
    shape = shape or Shape()
    random = np.random.default_rng(shape.seed)
    weights = random.lognormal(0.0, 1.1, shape.underlyings)
    sizes = np.maximum(8, np.round(weights / weights.sum() * shape.contracts)).astype(int)
    sizes[int(sizes.argmax())] += shape.contracts - int(sizes.sum())
    return [_chain(number, int(size), shape.seed, minute) for number, size in enumerate(sizes)]


def bodies(events: Sequence[ChainCollected]) -> list[bytes]:
    """Return the events as they travel."""
    return [event.to_bytes() for event in events]


def _chain(number: int, size: int, seed: int, minute: int) -> ChainCollected:
    random = np.random.default_rng((seed, number))
    symbol = ticker(number)
    close = float(np.round(random.lognormal(4.0, 0.9), 2))
    per_expiration = max(4, min(60, int(np.sqrt(size))))
    place = np.arange(size)
    expiration = np.datetime64(SESSION) + 7 * (place // (2 * per_expiration))
    step = max(0.5, round(close * 0.02 * 2) / 2)
    strike = np.maximum(0.5, (round(close / step) + (place // 2) % per_expiration - per_expiration // 2)) * step
    strike = np.maximum(strike, 0.5) + 0.001 * np.where(strike <= step, (place // 2) % per_expiration, 0)
    right = np.where(place % 2 == 0, "C", "P")
    columns = _trading(random, strike, close, minute)
    codes = np.round(strike * 1000).astype(np.int64)
    weeks = place // (2 * per_expiration)
    days = [(SESSION + timedelta(weeks=week)).strftime("%y%m%d") for week in range(int(weeks[-1]) + 1)]
    rows = zip(weeks.tolist(), right.tolist(), codes.tolist(), strict=True)
    names = [f"{symbol}{days[week]}{side}{code:08d}" for week, side, code in rows]
    table = pa.table(
        {
            "contract": names,
            "expiration": pa.array(expiration, pa.date32()),
            "right": right.tolist(),
            "strike": codes / 1000.0,
            **columns,
        }
    )
    as_of = OPENING + timedelta(minutes=minute)
    header = ChainHeader(
        symbol=symbol,
        session=SESSION,
        as_of=as_of,
        source="simulator",
        simulated=True,
        delay_s=0.0,
        close=close,
    )
    event_id = uuid5(_NAMESPACE, f"{seed}/{symbol}/{minute}")
    return ChainCollected(id=event_id, time=as_of, header=header, contracts=table.cast(CHAIN_SCHEMA))


def _trading(random: np.random.Generator, strike: Any, close: float, minute: int) -> dict[str, Any]:
    size = len(strike)
    interest = np.floor(random.lognormal(4.3, 1.9, size)) * (random.random(size) > 0.15)
    trades = random.random(size) < 0.30
    volume = np.floor(np.minimum(random.lognormal(3.5, 2.2, size), 200_000)) * trades
    volume = np.floor(volume * (1 + 0.004 * minute * random.random(size)))
    mid = np.round(np.maximum(0.02, close * 0.08 * random.random(size) * np.exp(-np.abs(strike / close - 1) * 4)), 2)
    half = np.round(np.maximum(0.01, mid * 0.03), 2)
    last = np.round(mid + half * random.choice([-1.2, -1.0, 0.0, 1.0, 1.2], size), 2)
    iv = random.uniform(0.15, 0.9, size)
    return {
        "bid": np.round(np.maximum(0.0, mid - half), 2),
        "ask": np.round(mid + half, 2),
        "last": np.where(trades, np.maximum(last, 0.01), 0.0),
        "volume": volume,
        "open_interest": interest,
        "iv": pa.array(iv, mask=random.random(size) < 0.1),
        "delta": random.uniform(-1, 1, size),
        "gamma": random.uniform(0, 0.1, size),
        "theta": -random.uniform(0, 0.2, size),
        "vega": random.uniform(0, 0.5, size),
    }
