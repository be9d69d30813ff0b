"""The venues that show the conformance cases. `python -m tests.broker.venues` writes the tables of docs/venues.md.

A row is a `Rigs` (tests/broker/rig.py): a name, the adapter, what the venue lacks, and how its stand-in is opened.
"""

from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Final

from services.broker.domain.checks import Capabilities
from tests.broker.alpaca_rig import AlpacaRigs
from tests.broker.cases import CASES, reason_to_skip
from tests.broker.ccxt_rig import CcxtRigs
from tests.broker.paper_rig import PaperRigs
from tests.broker.rig import Rigs
from tests.broker.tastytrade_rig import TastytradeRigs
from tests.fakes.venue import MemoryRigs
from tests.fakes.venue_books import PLAIN, Manner

VENUES: Final[tuple[Rigs, ...]] = (
    PaperRigs(),
    AlpacaRigs(),
    TastytradeRigs(),
    CcxtRigs(),
    MemoryRigs(PLAIN),
    MemoryRigs(Manner("memory-no-ids", knows_ids=False, fee_rate=Decimal("0.001"))),
    MemoryRigs(Manner("memory-totals", totals_first=True)),
)

DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "venues.md"
BEGIN: Final = "<!-- tables: written by python -m tests.broker.venues -->\n"
END: Final = "<!-- end of tables -->\n"


def tables(venues: Sequence[Rigs] = VENUES) -> str:
    """Return what the venues take, and which cases they show."""
    return f"{_table('takes', venues, _taken(venues))}\n{_table('case', venues, _shown(venues))}"


def with_tables(document: str) -> str:
    """Return the document with its tables as they are now."""
    before, rest = document.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


def _taken(venues: Sequence[Rigs]) -> Iterable[tuple[str, list[str]]]:
    all_of = [one.adapter.capabilities for one in venues]
    yield "order types", [_words(one.types) for one in all_of]
    yield "equities", [_words(one.times.get("equity", ())) for one in all_of]
    yield "options", [_words(one.times.get("option", ())) for one in all_of]
    yield "crypto", [_words(one.times.get("crypto", ())) for one in all_of]
    yield "order classes", [_words(one.classes) for one in all_of]
    yield "by value", [_words(one.notional) for one in all_of]
    yield "outside regular hours", ["yes" if one.extended_hours else "no" for one in all_of]
    yield "most legs", [_most_legs(one) for one in all_of]


def _most_legs(one: Capabilities) -> str:
    return str(one.most_legs) if "multi_leg" in one.classes else "1"


def _shown(venues: Sequence[Rigs]) -> Iterable[tuple[str, list[str]]]:
    for case in CASES.values():
        skipped = [reason_to_skip(case, one.adapter.capabilities, one.lacks) for one in venues]
        yield f"{case.number} {case.title} (`{case.name}`)", ["no" if why else "yes" for why in skipped]


def _words(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no"


def _table(first: str, venues: Sequence[Rigs], rows: Iterable[tuple[str, list[str]]]) -> str:
    lines = [[first, *(one.name for one in venues)], ["---"] * (len(venues) + 1), *([name, *row] for name, row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
