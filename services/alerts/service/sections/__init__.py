"""The sections of a digest, in order. A new one is a file with `collect` and `render`, and a line here."""

from typing import Final

from services.alerts.service.sections import held_back, leaderboard, top_alerts, trading
from services.alerts.service.sections.base import Asked, Kind, Section

__all__ = ["SECTIONS", "Asked", "Kind", "Section"]

SECTIONS: Final = (
    Kind(top_alerts.collect, top_alerts.render),
    Kind(held_back.collect, held_back.render),
    Kind(trading.collect, trading.render),
    Kind(leaderboard.collect, leaderboard.render),
)
