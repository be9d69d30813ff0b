"""detector: says which option contracts are unusual, how much, and which are the session's best.

Owns     schema `detector`: activity, the leaderboard with its history, each symbol's last volumes
Reads    data.chains (ChainCollected)
Publishes detector.activity (ActivityDetected), detector.leaderboard (LeaderboardChanged),
         api.audit (ActionAudited)
Serves   GET /leaderboard, GET /leaderboard/history, GET /activity/{symbol}
"""

from typing import Final

from shared.contracts.api import ActionAudited
from shared.contracts.base import Event
from shared.contracts.data import ChainCollected
from shared.contracts.detector import ActivityDetected, LeaderboardChanged

OWNS: Final = "detector"
READS: Final[tuple[type[Event], ...]] = (ChainCollected,)
PUBLISHES: Final[tuple[type[Event], ...]] = (ActivityDetected, LeaderboardChanged, ActionAudited)
