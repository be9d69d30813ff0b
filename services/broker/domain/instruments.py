"""What is traded: an equity by its symbol, an option by its OCC symbol, a crypto pair as `BTC/USD`.

What would surprise you: an option's root need not be its underlying's symbol (SPXW lies under _SPX, BRKB under BRK.B),
and a root that ends with a digit (AAPL1) is an adjusted contract that delivers something else than 100 shares.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Final, Literal

from shared.contracts.symbols import PAIR, SYMBOL
from shared.errors import Invalid

Right = Literal["C", "P"]

ONE: Final = Decimal(1)
SHARES_A_CONTRACT: Final = Decimal(100)
LIES_UNDER: Final[Mapping[str, str]] = {
    **dict.fromkeys(("SPX", "SPXW"), "_SPX"),
    **dict.fromkeys(("NDX", "NDXP"), "_NDX"),
    **dict.fromkeys(("RUT", "RUTW"), "_RUT"),
    **dict.fromkeys(("VIX", "VIXW"), "_VIX"),
    "XSP": "_XSP",
    "DJX": "_DJX",
    "BRKB": "BRK.B",
    "BFB": "BF.B",
}
"""What the options of a root lie under, where that is not the root itself."""
MONEY: Final = frozenset(
    (
        *(
            "USD",
            "USDT",
            "USDC",
            "USDG",
            "USDP",
            "PYUSD",
            "RLUSD",
            "DAI",
            "TUSD",
            "FDUSD",
            "EUR",
            "EURC",
            "EURT",
            "GBP",
        ),
        *(
            "CHF",
            "AUD",
            "CAD",
            "NZD",
            "SGD",
            "HKD",
            "JPY",
            "KRW",
            "CNY",
            "INR",
            "IDR",
            "THB",
            "PHP",
            "VND",
            "MYR",
            "TRY",
        ),
        *(
            "BRL",
            "MXN",
            "ARS",
            "COP",
            "CLP",
            "PEN",
            "ZAR",
            "NGN",
            "PLN",
            "CZK",
            "HUF",
            "RON",
            "BGN",
            "SEK",
            "NOK",
            "DKK",
        ),
        *("UAH", "KZT", "ILS", "AED", "SAR"),
    )
)
"""What pairs are paid in that is money, or stands for it; whatever else they are paid in is a coin with a price."""
_OCC: Final = re.compile(r"([A-Z][A-Z0-9]{0,5})([0-9]{2})([0-9]{2})([0-9]{2})([CP])([0-9]{8})", re.ASCII)
_MOST_MILLS: Final = Decimal(10**8)


class BadInstrument(Invalid):
    """That is no instrument: give AAPL, an OCC symbol such as AAPL260724C00110000, or a pair such as BTC/USD."""

    code = "UNKNOWN_SYMBOL"


@dataclass(frozen=True, slots=True)
class Equity:
    """A share or a fund."""

    symbol: str

    @property
    def key(self) -> str:
        """How it is written everywhere."""
        return self.symbol

    @property
    def underlying(self) -> str:
        """Itself."""
        return self.symbol

    @property
    def multiplier(self) -> Decimal:
        """Units of the underlying in one."""
        return ONE


@dataclass(frozen=True, slots=True)
class Option:
    """A listed option. `strike` is in USD, in whole thousandths."""

    root: str
    expires_on: date
    right: Right
    strike: Decimal
    underlying: str

    @property
    def key(self) -> str:
        """The OCC symbol without padding."""
        return f"{self.root}{self.expires_on:%y%m%d}{self.right}{int(self.strike * 1000):08d}"

    @property
    def multiplier(self) -> Decimal:
        """Units of the underlying in one."""
        return SHARES_A_CONTRACT

    @property
    def adjusted(self) -> bool:
        """Whether it delivers something else than 100 shares, because of a corporate action."""
        return self.root[-1].isdigit()


@dataclass(frozen=True, slots=True)
class Crypto:
    """A pair: so much of `quote` for one of `base`."""

    base: str
    quote: str

    @property
    def key(self) -> str:
        """How it is written everywhere."""
        return f"{self.base}/{self.quote}"

    @property
    def valued_by(self) -> str | None:
        """The pair that says what it is paid in is worth, where that is a coin; None where it is money."""
        return None if self.quote in MONEY else f"{self.quote}/USD"

    @property
    def underlying(self) -> str:
        """Itself."""
        return self.key

    @property
    def multiplier(self) -> Decimal:
        """Units of the underlying in one."""
        return ONE


Instrument = Equity | Option | Crypto


def instrument(text: str, underlying: str | None = None) -> Instrument:
    """Read an instrument as people and venues write it, padded OCC symbols too. Raises BadInstrument.

    `underlying` is what an option lies under, where the venue tells it; otherwise what its root says.
    """
    return _read(text, underlying)


@lru_cache(maxsize=65_536)
def _read(text: str, underlying: str | None) -> Instrument:
    name = text.strip().upper() if text.isascii() else ""
    if pair := PAIR.fullmatch(name):
        return Crypto(pair[1], pair[2])
    if found := _OCC.fullmatch(name.replace(" ", "")):
        return _option(found, underlying)
    if SYMBOL.fullmatch(name):
        return Equity(name)
    raise BadInstrument(symbol=text[:32])


def option(root: str, expires_on: date, right: Right, strike: Decimal, underlying: str | None = None) -> Option:
    """Return an option. Raises BadInstrument where its strike is not in whole thousandths."""
    mills = strike * 1000
    if not strike.is_finite() or not 0 < mills < _MOST_MILLS or mills != int(mills):
        raise BadInstrument("a strike is above zero and in whole thousandths", strike=str(strike))
    return Option(root, expires_on, right, strike, underlying or LIES_UNDER.get(root, root))


def _option(found: re.Match[str], underlying: str | None) -> Option:
    if underlying is not None and not SYMBOL.fullmatch(underlying):
        raise BadInstrument("the underlying is no symbol", underlying=underlying[:32])
    try:
        expires_on = date(2000 + int(found[2]), int(found[3]), int(found[4]))
    except ValueError as error:
        raise BadInstrument("the symbol's expiration is no day", symbol=found[0]) from error
    right: Right = "C" if found[5] == "C" else "P"
    return option(found[1], expires_on, right, Decimal(int(found[6])) / 1000, underlying)
