"""The sessions of the New York exchange, from exchange_calendars, computed in a short-lived child process.

The library brings pandas: 55 MB that this service would keep for ever, for 8,000 rows that it needs once.
"""

import asyncio
import json
import sys
from datetime import UTC, date, datetime
from typing import Final

from services.data.domain.sessions import FIRST_DAY, LAST_DAY, Sessions, TradingSession

_PROGRAM: Final = """
import json, sys
from exchange_calendars import get_calendar
calendar = get_calendar("XNYS", start=sys.argv[1], end=sys.argv[2])
seconds = lambda column: [int(moment.timestamp()) for moment in column]
days = [str(day.date()) for day in calendar.sessions]
json.dump(list(zip(days, seconds(calendar.opens), seconds(calendar.closes))), sys.stdout)
"""


async def load_sessions() -> Sessions:
    """Return the sessions of XNYS, 2004 to 2035; takes a few seconds. Raises RuntimeError if that fails."""
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
    rows: list[tuple[str, int, int]] = json.loads(out)
    return Sessions([_session(*row) for row in rows])


def _session(day: str, opens: int, closes: int) -> TradingSession:
    return TradingSession(
        date.fromisoformat(day), datetime.fromtimestamp(opens, UTC), datetime.fromtimestamp(closes, UTC)
    )
