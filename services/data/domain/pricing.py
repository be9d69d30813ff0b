"""Black-Scholes prices and greeks of many European options at once, without dividends.

Formulas: Black and Scholes (1973), as in Hull, Options, Futures and Other Derivatives, chapters 15 and 19.
The normal distribution function is Abramowitz and Stegun 7.1.26 (absolute error below 1.5e-7), which spares
the simulator a dependency.
"""

from dataclasses import dataclass

import numpy as np

from services.data.domain.columns import Flags, Floats


@dataclass(frozen=True, slots=True)
class Priced:
    """A price in USD a share, and greeks: theta a calendar day, vega a volatility point (0.01)."""

    price: Floats
    delta: Floats
    gamma: Floats
    theta: Floats
    vega: Floats


def black_scholes(spot: float, strike: Floats, years: Floats, iv: Floats, call: Flags, *, rate: float = 0.04) -> Priced:
    """Price options; `years` and `iv` must be above zero, `iv` and `rate` are a year."""
    root = iv * np.sqrt(years)
    d1 = (np.log(spot / strike) + (rate + iv * iv / 2) * years) / root
    d2 = d1 - root
    sign = np.where(call, 1.0, -1.0)
    discounted = strike * np.exp(-rate * years)
    density = np.exp(-d1 * d1 / 2) / np.sqrt(2 * np.pi)
    price = sign * (spot * _normal(sign * d1) - discounted * _normal(sign * d2))
    theta = -spot * density * iv / (2 * np.sqrt(years)) - sign * rate * discounted * _normal(sign * d2)
    return Priced(
        price=np.maximum(price, 0.0),
        delta=sign * _normal(sign * d1),
        gamma=density / (spot * root),
        theta=theta / 365,
        vega=spot * density * np.sqrt(years) / 100,
    )


def _normal(x: Floats) -> Floats:
    z = np.abs(x) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    upper = 1 - series * np.exp(-z * z) / 2
    return np.where(x >= 0, upper, 1 - upper)
