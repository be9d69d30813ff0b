"""How unusual a contract is, 0 to 100, with its parts; and the contract in words for the event.

The score is the sum of six parts. The first two say how much happened, the others how strangely:

    part       points  curve
    volume_oi      25  log(ratio / 1.25) / log(20 / 1.25): 0 at Barchart's threshold, full from 20 times
    premium        25  log10(premium / 10,000) / 2: 0 at $10,000, full from $1,000,000
    otm            15  percent out of the money / 15: 0 at or in the money or unknown, full from 15%
    dte            10  2 ** (-days / 30): full on the last day, half at 30 days, an eighth at 90
    side           10  by side of the quote, `SIDE_SHARES`: buying pressure counts most
    change         15  (volume since the last snapshot / open interest) / 1.25: full when the new trades alone
                       would have met the threshold

Every curve is clipped to 0..1 before its points; parts are rounded to 0.01 and the score is their sum. The
anchors are fixed, whatever the thresholds in settings say, so that scores stay comparable over time.
"""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import numpy as np

from services.detector.domain.rule import LARGEST_PRICE_USD, SIDES, Floats, Found, Ints, is_price
from shared.contracts.detector import ScoreParts, Side, UnusualContract

SHARES_PER_CONTRACT: Final = 100
POINTS: Final[Mapping[str, float]] = {
    "volume_oi": 25.0,
    "premium": 25.0,
    "otm": 15.0,
    "dte": 10.0,
    "side": 10.0,
    "change": 15.0,
}
SIDE_SHARES: Final[Mapping[Side, float]] = {
    "above_ask": 1.0,
    "ask": 0.8,
    "mid": 0.4,
    "below_bid": 0.3,
    "bid": 0.2,
    "unknown": 0.0,
}


def score(found: Found, volume_change: Ints) -> tuple[dict[str, Floats], Floats]:
    """Return the parts by name and the scores, one of each for every contract found.

    `volume_change` are contracts traded since the last snapshot, never negative.
    """
    curves = {
        "volume_oi": np.log(found.volume / found.open_interest / 1.25) / np.log(20 / 1.25),
        "premium": np.log10(premium_usd(found) / 10_000) / 2,
        "otm": np.nan_to_num(found.otm_pct) / 15,
        "dte": 2.0 ** (-found.dte / 30),
        "side": np.array([SIDE_SHARES[side] for side in SIDES])[found.side],
        "change": volume_change / found.open_interest / 1.25,
    }
    parts = {name: np.round(POINTS[name] * np.clip(curve, 0, 1), 2) for name, curve in curves.items()}
    return parts, np.round(np.sum(list(parts.values()), axis=0), 2)


def premium_usd(found: Found) -> Floats:
    """Return volume x last x 100 shares: an upper estimate, for the last price stands for every trade."""
    return found.volume * found.last * SHARES_PER_CONTRACT


def describe(found: Found, volume_change: Ints) -> dict[int, list[UnusualContract]]:
    """Return chain number -> its unusual contracts, best score first (ties by name).

    The only place that makes an object of each contract: of those found, about one in a hundred.
    """
    parts, scores = score(found, volume_change)
    columns: dict[str, list[Any]] = {
        "contract": found.contracts.to_pylist(),
        "right": np.where(found.is_call, "C", "P").tolist(),
        "expiration": found.expiration.astype("datetime64[D]").tolist(),
        "strike": np.round(found.strike, 4).tolist(),
        "bid": _prices(found.bid),
        "ask": _prices(found.ask),
        "last": np.round(found.last, 4).tolist(),
        "volume": found.volume.astype(np.int64).tolist(),
        "open_interest": found.open_interest.astype(np.int64).tolist(),
        "volume_oi_ratio": np.round(found.volume / found.open_interest, 4).tolist(),
        "volume_change": volume_change.tolist(),
        "premium_usd": np.round(premium_usd(found), 2).tolist(),
        "dte": found.dte.tolist(),
        "otm_pct": _or_none(np.round(found.otm_pct, 4)),
        "iv": _or_none(np.where(found.iv > 0, np.round(found.iv, 6), np.nan)),
        "side": [SIDES[side] for side in found.side.tolist()],
        "score": scores.tolist(),
    }
    points = [
        ScoreParts(**dict(zip(parts, values, strict=True)))
        for values in zip(*(part.tolist() for part in parts.values()), strict=True)
    ]
    told: dict[int, list[UnusualContract]] = {}
    rows = zip(found.chain.tolist(), points, *columns.values(), strict=True)
    for chain, part, *values in rows:
        contract = UnusualContract(parts=part, **dict(zip(columns, values, strict=True)))
        told.setdefault(chain, []).append(contract)
    for contracts in told.values():
        contracts.sort(key=lambda each: (-each.score, each.contract))
    return told


def _prices(values: Floats) -> list[float | None]:
    return _or_none(np.where((values >= 0) & (values <= LARGEST_PRICE_USD), np.round(values, 4), np.nan))


def _or_none(values: Floats) -> list[float | None]:
    return [None if value != value else value for value in values.tolist()]  # noqa: PLR0124 - NaN is not itself


def price_or_none(value: float | None) -> Decimal | None:
    """Return the price in USD to 0.0001, or None when it is not one."""
    return None if value is None or not is_price(value) else Decimal(str(round(value, 4)))
