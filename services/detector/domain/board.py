"""Who enters the leaderboard, and who leads it."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from math import ceil

from shared.contracts.detector import LeaderboardEntry, UnusualContract


def minute_end(as_of: datetime) -> datetime:
    """Return the first moment after the minute of `as_of`: what names a minute of the board."""
    return as_of.replace(second=0, microsecond=0) + timedelta(minutes=1)


def top_x(symbols_scanned: int, least: int, share: float) -> int:
    """Return how many of a minute may enter the board: `share` of the symbols, but `least` at least."""
    return max(least, ceil(round(symbols_scanned * share, 9)))


def entry(symbol: str, contract: UnusualContract, *, simulated: bool) -> LeaderboardEntry:
    """Return the contract as a place on the board; `merge` ranks it."""
    return LeaderboardEntry(
        rank=0,
        contract=contract.contract,
        symbol=symbol,
        score=contract.score,
        premium_usd=contract.premium_usd,
        volume=contract.volume,
        open_interest=contract.open_interest,
        simulated=simulated,
    )


def merge(
    board: Iterable[LeaderboardEntry], entries: Iterable[LeaderboardEntry], size: int
) -> tuple[LeaderboardEntry, ...]:
    """Return the best `size` of both, ranked from 1: one place a contract, at its best score.

    Of equal scores of one contract the one from `entries` stands, it is newer. The order in which minutes are
    merged changes no score on the board.
    """
    best: dict[str, LeaderboardEntry] = {}
    for each in (*board, *entries):
        held = best.get(each.contract)
        if held is None or each.score >= held.score:
            best[each.contract] = each
    ranked = sorted(best.values(), key=lambda each: (-each.score, each.contract))[:size]
    return tuple(each.model_copy(update={"rank": rank}) for rank, each in enumerate(ranked, start=1))
