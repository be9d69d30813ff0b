"""The sessions of the New York exchange, from exchange_calendars, computed in a short-lived child process.

The library brings pandas: 55 MB that a service would keep for ever, for 8,000 rows that it needs once. They are
kept in ~/.cache/openbell for the next start, by the library's version, for computing them takes seconds.
"""

import asyncio
import contextlib
import json
import os
import sys
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from shared.sessions import FIRST_DAY, LAST_DAY, Sessions, TradingSession

CACHE: Final = Path.home() / ".cache" / "openbell"

Row = tuple[str, int, int]
"""(day, opens, closes): the times in Unix seconds."""

_PROGRAM: Final = """
import json, sys
from exchange_calendars import get_calendar
calendar = get_calendar("XNYS", start=sys.argv[1], end=sys.argv[2])
seconds = lambda column: [int(moment.timestamp()) for moment in column]
days = [str(day.date()) for day in calendar.sessions]
json.dump(list(zip(days, seconds(calendar.opens), seconds(calendar.closes))), sys.stdout)
"""


async def load_sessions() -> Sessions:
    """Return the sessions of XNYS, 2004 to 2035; takes a few seconds the first time. Raises RuntimeError."""
    kept = CACHE / f"xnys-{version('exchange_calendars')}-{FIRST_DAY}-{LAST_DAY}.json"
    rows = await asyncio.to_thread(_read, kept)
    if rows is None:
        rows = await _compute()
        await asyncio.to_thread(_keep, kept, rows)
    return Sessions([_session(*row) for row in rows])


def _read(kept: Path) -> list[Row] | None:
    try:
        rows: list[Row] = json.loads(kept.read_bytes())
    except (OSError, ValueError):
        return None
    return rows


def _keep(kept: Path, rows: list[Row]) -> None:
    with contextlib.suppress(OSError):  # a read-only home costs time at each start, no more
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps(rows))
        fresh.replace(kept)


async def _compute() -> list[Row]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _PROGRAM, FIRST_DAY.isoformat(), LAST_DAY.isoformat()),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await child.communicate()
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if child.returncode != 0:
        raise RuntimeError(f"exchange_calendars failed: {err.decode(errors='replace')[-500:]}")
    rows: list[Row] = json.loads(out)
    return rows


def _session(day: str, opens: int, closes: int) -> TradingSession:
    return TradingSession(
        date.fromisoformat(day), datetime.fromtimestamp(opens, UTC), datetime.fromtimestamp(closes, UTC)
    )
