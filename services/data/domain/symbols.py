"""Symbols of underlyings, and OCC contract names.

A symbol goes into a URL, so nothing passes that does not match the grammar of shared.contracts.symbols.

A contract's root need not be its underlying's symbol: SPXW lies under _SPX, BRKB under BRK.B, and AAPL1 is an
adjusted AAPL. All of them belong to the chain they came in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from services.data.domain.columns import Days, Flags, Floats
from shared.contracts.symbols import SYMBOL
from shared.errors import Invalid

_OCC: Final = re.compile(r"[A-Z][A-Z0-9]{0,5}[0-9]{6}[CP][0-9]{8}", re.ASCII)
_TAIL: Final = 15  # yymmdd, C or P, strike in thousandths of a dollar
_NO_TAIL: Final = "000000C00000000"


def parse_symbol(text: str) -> str:
    """Return the symbol in upper case; raises Invalid for anything outside the grammar."""
    symbol = text.upper() if text.isascii() else ""
    if not SYMBOL.fullmatch(symbol):
        raise Invalid("that is not a symbol: letters and digits like AAPL, BRK.B or _SPX", symbol=text[:32])
    return symbol


def parse_contract(text: str) -> str:
    """Return the OCC name in upper case, without padding; raises Invalid when it is none."""
    contract = text.replace(" ", "").upper() if text.isascii() else ""
    if not _OCC.fullmatch(contract) or not occ_columns([contract]).valid[0]:
        raise Invalid("that is not an OCC contract name such as AAPL260724C00110000", contract=text[:32])
    return contract


@dataclass(frozen=True, slots=True)
class OccColumns:
    """What many contract names say, row by row. Where `valid` is False the other columns mean nothing."""

    valid: Flags
    expiration: Days
    right: npt.NDArray[Any]  # "C" or "P"
    strike: Floats  # USD


def occ_columns(names: Sequence[str]) -> OccColumns:
    """Read OCC names (root, yymmdd, C or P, strike in thousandths) in one pass over all of them."""
    tails = "".join(name[-_TAIL:] if _OCC.fullmatch(name) else _NO_TAIL for name in names)
    letters = np.frombuffer(tails.encode(), np.uint8).reshape(-1, _TAIL)
    digits = letters.astype(np.int64) - ord("0")
    year, month, day = (digits[:, at] * 10 + digits[:, at + 1] for at in (0, 2, 4))
    mills = digits[:, 7:] @ (10 ** np.arange(7, -1, -1))
    months = (np.maximum((2000 + year - 1970) * 12 + month - 1, 0)).astype("datetime64[M]")
    dates = months.astype("datetime64[D]") + (day - 1).astype("timedelta64[D]")
    real_date = (month >= 1) & (month <= 12) & (day >= 1) & (dates.astype("datetime64[M]") == months)  # noqa: PLR2004 - months
    return OccColumns(real_date & (mills > 0), dates, np.where(letters[:, 6] == ord("C"), "C", "P"), mills / 1000.0)


def occ_name(root: str, expiration: str, right: str, strike: float) -> str:
    """Write an OCC name; `expiration` is yymmdd, `strike` in USD."""
    return f"{root}{expiration}{right}{round(strike * 1000):08d}"
