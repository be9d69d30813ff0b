"""The grammar of underlyings' symbols, for everybody who takes one from outside.

Up to six letters or digits, an optional share class (`BRK.B`), or Cboe's leading underscore of an index (`_SPX`).
"""

import re
from typing import Final

PATTERN: Final = r"_[A-Z][A-Z0-9]{0,5}|[A-Z][A-Z0-9]{0,5}(?:\.[A-Z])?"
SYMBOL: Final = re.compile(PATTERN, re.ASCII)
