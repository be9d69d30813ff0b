"""data: collects option chains and quotes, and tells what they are.

Owns     schema `data`: the last good answer of each symbol and source, and which symbols users watch
Reads    api.watchlists (StockAdded, StockRemoved); markets' answers come through `adapters/`
Publishes data.chains (ChainCollected), data.quotes (QuoteTaken), data.pairs (PairQuoted), api.audit (ActionAudited)
Serves   GET /realtime-options/{symbol}
"""

from typing import Final

from shared.contracts.api import ActionAudited, StockAdded, StockRemoved
from shared.contracts.base import Event
from shared.contracts.data import ChainCollected
from shared.contracts.quotes import PairQuoted, QuoteTaken

OWNS: Final = "data"
READS: Final[tuple[type[Event], ...]] = (StockAdded, StockRemoved)
PUBLISHES: Final[tuple[type[Event], ...]] = (ChainCollected, QuoteTaken, PairQuoted, ActionAudited)
