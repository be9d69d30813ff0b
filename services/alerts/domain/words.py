"""Numbers, amounts, days and times as a reader's language and time zone write them. Pure.

What would surprise you: the language decides the shape of numbers and dates only; the sentences are English. A
locale or a zone that nobody knows is the default one: a message is not lost for it.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_time
from babel.numbers import format_decimal

LOCALE: Final = "en_US"
TIMEZONE: Final = "UTC"

_NONE: Final = "BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF"
_THREE: Final = "BHD IQD JOD KWD LYD OMR TND"
_DECIMALS: Final = {code: decimals for decimals, codes in ((0, _NONE), (3, _THREE)) for code in codes.split()}
"""Of currencies that have not two, as services.payment.domain.money counts them."""
_UNITS: Final = ((Decimal(1_000_000_000), "B", 1), (Decimal(1_000_000), "M", 1), (Decimal(1_000), "k", 0))


@dataclass(frozen=True, slots=True)
class Words:
    """How one reader's numbers and times are written; `locale` as "de_DE" or "de-DE", `timezone` an IANA name."""

    locale: str = LOCALE
    timezone: str = TIMEZONE

    def number(self, amount: Decimal | float) -> str:
        """Return a quantity or a price without idle zeros: 10, 1,234.5, 0.00000001."""
        return _number(amount, self.locale)

    def money(self, amount: Decimal, currency: str) -> str:
        """Return an amount as a receipt shows it: 29.00 USD, 500 JPY, 1.500 KWD, 0.0125 BTC."""
        decimals = _DECIMALS.get(currency, 2)
        with localcontext(prec=120):
            exact = amount == round(amount, decimals)
            shown = _spaced(_decimal(amount, "#,##0", decimals, self.locale)) if exact else self.number(amount)
        return f"{shown} {currency}"

    def dollars(self, amount: Decimal) -> str:
        """Return an amount as people say it: $1.2M, $350k, $900."""
        for unit, name, digits in _UNITS:
            if amount >= unit:
                return f"${self._plain(amount / unit, digits)}{name}"
        return f"${self._plain(amount, 0)}"

    def day(self, at: date) -> str:
        """Return a date: June 2, 2025. A time is first taken to the reader's zone."""
        local = at.astimezone(_zone(self.timezone)) if isinstance(at, datetime) else at
        return format_date(local, "long", locale=_locale(self.locale))

    def clock(self, at: datetime) -> str:
        """Return a time of day with its zone: 2:30 PM UTC."""
        local = at.astimezone(_zone(self.timezone))
        return f"{_spaced(format_time(local, 'short', locale=_locale(self.locale)))} {local.tzname()}"

    def _plain(self, amount: Decimal, digits: int) -> str:
        return _decimal(amount, "0", digits, self.locale)


DEFAULT: Final = Words()


@lru_cache(maxsize=1_000)
def _locale(name: str) -> Locale:
    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError):
        return Locale.parse(LOCALE)


@lru_cache(maxsize=1_000)
def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        return UTC


@lru_cache(maxsize=10_000)
def _number(amount: Decimal | float, locale: str) -> str:
    with localcontext(prec=120):
        exact = Decimal(str(amount)).normalize()
        return _spaced(_decimal(exact, "#,##0", max(0, -int(exact.as_tuple().exponent)), locale))


@lru_cache(maxsize=10_000)  # what a signal tells a hundred thousand readers is the same few numbers
def _decimal(amount: Decimal, whole: str, digits: int, locale: str) -> str:
    pattern = f"{whole}.{'0' * digits}" if digits else whole
    return format_decimal(amount, format=pattern, locale=_locale(locale))


def _spaced(text: str) -> str:
    """Return the text with plain spaces: narrow ones look broken in many programs."""
    return text.replace("\u202f", " ").replace("\xa0", " ")
