"""The grammar of symbols, for everybody who takes one from outside.

An underlying: up to six letters or digits, an optional share class (`BRK.B`), or Cboe's leading underscore of an index
(`_SPX`). A crypto pair: so much of what comes second for one of what comes first (`BTC/USD`).
"""

import re
from typing import Final

PATTERN: Final = r"_[A-Z][A-Z0-9]{0,5}|[A-Z][A-Z0-9]{0,5}(?:\.[A-Z])?"
SYMBOL: Final = re.compile(PATTERN, re.ASCII)
PAIR: Final = re.compile(r"([A-Z0-9]{1,20})/([A-Z0-9]{2,10})", re.ASCII)
