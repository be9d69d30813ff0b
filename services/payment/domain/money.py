"""Amounts that are exact: whole minor or base units, with the currency and how many decimals one unit of it has.

What would surprise you: the decimals of a currency are Stripe's and not always ISO's. Stripe counts ISK and UGX in
hundredths, though neither has any. A coin's decimals belong to its contract, so they come with the amount.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

from shared.errors import Invalid

MOST: Final = 10**38 - 1
"""What a numeric(38,0) holds."""

_NONE: Final = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF"
_THREE: Final = "BHD IQD JOD KWD LYD OMR TND"
_TWO: Final = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY "
    "COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS "
    "INR IRR ISK JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR "
    "MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD "
    "SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VES WST XCD XCG YER ZAR ZMW ZWG"
)
_EXPONENTS: Final = {
    code: exponent for exponent, codes in ((0, _NONE), (2, _TWO), (3, _THREE)) for code in codes.split()
}
_EXACT: Final = Context(prec=120, traps=[Inexact, InvalidOperation])


class UnknownCurrency(Invalid):
    """We do not know this currency."""

    code = "UNKNOWN_CURRENCY"


class BadAmount(Invalid):
    """The amount is not one that can be paid."""

    code = "BAD_AMOUNT"


@dataclass(frozen=True, slots=True)
class Money:
    """So many `minor` units of a currency whose unit has 10**`exponent` of them; less than zero where it goes out."""

    minor: int
    currency: str  # ISO 4217 in capitals, or the coin's symbol
    exponent: int

    def __post_init__(self) -> None:
        if abs(self.minor) > MOST:
            raise BadAmount("the amount is absurdly large", currency=self.currency)

    def __neg__(self) -> "Money":
        return Money(-self.minor, self.currency, self.exponent)

    @property
    def units(self) -> Decimal:
        """The same in units of the currency, with all its decimals."""
        return Decimal(self.minor).scaleb(-self.exponent, _EXACT)


def known_currencies() -> Iterator[str]:
    """Yield the codes that `fiat` knows."""
    yield from sorted(_EXPONENTS)


def exponent_of(currency: str) -> int:
    """Return the decimals of a national currency, given in capitals. Raises UnknownCurrency."""
    if currency not in _EXPONENTS:
        raise UnknownCurrency(currency=currency[:20])
    return _EXPONENTS[currency]


def fiat(minor: int, code: str) -> Money:
    """Return an amount as Stripe writes it: minor units, the code in small letters. Raises UnknownCurrency."""
    currency = code.upper()
    return Money(minor, currency, exponent_of(currency))


def price(units: Decimal, code: str) -> Money:
    """Return what a person typed: units, above zero, with no more decimals than the currency has.

    Raises UnknownCurrency, BadAmount.
    """
    currency = code.upper()
    exponent = exponent_of(currency)
    if not units.is_finite() or units <= 0:
        raise BadAmount("an amount is above zero")
    if units.adjusted() > len(str(MOST)):
        raise BadAmount("the amount is absurdly large", currency=currency)
    return Money(whole(units, exponent), currency, exponent)


def whole(units: Decimal, exponent: int) -> int:
    """Return an amount in units as whole minor units. Raises BadAmount for one with more decimals than there are."""
    try:
        return int(units.scaleb(exponent, _EXACT).to_integral_exact(context=_EXACT))
    except (Inexact, InvalidOperation):
        raise BadAmount(f"there are {exponent} decimals") from None
