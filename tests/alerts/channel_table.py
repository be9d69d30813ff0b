"""The table of channels and the numbered cases of test_senders, in docs/channels.md.

.venv/bin/python -m tests.alerts.channel_table
"""

import re
from pathlib import Path
from typing import Final

from tests.alerts.venues import LACKS, VENUES

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "channels.md"
MARK: Final = "<!-- table: written by python -m tests.alerts.channel_table -->\n"

_SUITE: Final = Path(__file__).with_name("test_senders.py")
_CASE: Final = re.compile(r"^async def test_(\d+)_(\w+)\(", re.MULTILINE)


def table() -> str:
    """Return the table and, below it, why a channel lacks a case."""
    lines = ["| case | " + " | ".join(VENUES) + " |", "| --- " * (len(VENUES) + 1) + "|"]
    for number, name in sorted((int(number), name) for number, name in _CASE.findall(_SUITE.read_text())):
        cells = ["no" if number in LACKS.get(venue, {}) else "yes" for venue in VENUES]
        lines.append(f"| {number} {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    reasons = sorted({(venue, reason) for venue, cases in LACKS.items() for reason in cases.values()})
    return "\n".join([*lines, "", *(f"- `{venue}`: {reason}." for venue, reason in reasons), ""])


if __name__ == "__main__":
    DOCUMENT.write_text(DOCUMENT.read_text().partition(MARK)[0] + MARK + "\n" + table())
