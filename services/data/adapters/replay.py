"""Recorded Cboe answers from a folder, told once in the order of their timestamps.

Every `*.json` file with the shape of an option answer is used, others are passed over. `as_of` is the
recording's own time, so its age is as large as it is; `delay_s` is Cboe's. Nothing is simulated: these are
real trades, only old ones.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from services.data.adapters.cboe import DELAY_S, parse_answer
from services.data.domain.chain import Snapshot, Validators
from services.data.domain.symbols import parse_symbol
from services.data.ports import Ended, QuoteFeed, Unchanged, UnusableAnswer
from shared.clock import Clock
from shared.contracts.data import Source
from shared.errors import Invalid, NotFound, OpenbellError
from shared.sessions import Sessions


class ReplaySource:
    """Reads one file at a time, the next only when the last was taken and `pace_s` seconds are over."""

    name: Source = "replay"
    delay_s: float = DELAY_S
    quotes: QuoteFeed | None = None

    def __init__(self, *, folder: Path, sessions: Sessions, clock: Clock, pace_s: float = 0.0) -> None:
        self.poll_every_s = pace_s
        self._sessions = sessions
        self._clock = clock
        self._pace = timedelta(seconds=pace_s)
        self._queue, self.passed_over = _recordings(folder, sessions)
        self._symbols = tuple(dict.fromkeys(symbol for _, symbol, _ in self._queue))
        self._last: datetime | None = None

    def offers(self, symbols: Sequence[str]) -> tuple[str, ...]:  # noqa: ARG002 - the folder decides
        """Return the symbol of the next recording: one at a time keeps the order in which they were made."""
        return (self._queue[0][1] if self._queue else self._symbols[-1],)

    def opens_in_s(self, now: datetime) -> float:  # noqa: ARG002 - recordings run on their own clock
        """Return 0: a recording plays at any hour."""
        return 0.0

    async def fetch(self, symbol: str, known: Validators) -> Snapshot | Unchanged | Ended:  # noqa: ARG002 - port
        """Return the next recording if it is this symbol's turn, Unchanged if not, Ended after the last."""
        if parse_symbol(symbol) not in self._symbols:
            raise NotFound("the folder has no recording of this symbol", symbol=symbol)
        if not self._queue:
            return Ended()
        now = self._clock()
        if self._queue[0][1] != symbol or (self._last is not None and now < self._last + self._pace):
            return Unchanged()
        _, _, path = self._queue.pop(0)
        self._last = now
        return await asyncio.to_thread(_read, path, self._sessions)

    async def aclose(self) -> None:
        """Nothing is open."""


def _recordings(folder: Path, sessions: Sessions) -> tuple[list[tuple[datetime, str, Path]], list[Path]]:
    if not folder.is_dir():
        raise Invalid("OPENBELL_DATA_REPLAY_DIR is not a folder", folder=str(folder))
    found: list[tuple[datetime, str, Path]] = []
    passed_over: list[Path] = []
    for path in sorted(folder.glob("*.json")):
        try:
            header = _read(path, sessions).header
        except OpenbellError:
            passed_over.append(path)
        else:
            found.append((header.as_of, header.symbol, path))
    if not found:
        raise Invalid("the folder has no recorded Cboe option answers", folder=str(folder))
    return sorted(found), passed_over


def _read(path: Path, sessions: Sessions) -> Snapshot:
    try:
        body = path.read_bytes()
    except OSError as error:
        raise UnusableAnswer("the recording cannot be read", path=str(path)) from error
    return parse_answer(body, source="replay", sessions=sessions)
