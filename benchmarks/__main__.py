"""`make bench`: run all benchmarks, or those named, print a table and write `.bench/<name>.json`.

python -m benchmarks [detection market messaging latency alerts gateway payment broker memory]
"""

import asyncio
import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

ALL: Final = {
    "detection": "benchmarks.detection",
    "market": "benchmarks.market_through",
    "messaging": "benchmarks.messaging.all",
    "latency": "benchmarks.alert_latency",
    "alerts": "benchmarks.alerts",
    "gateway": "benchmarks.gateway",
    "payment": "benchmarks.payment",
    "broker": "benchmarks.broker",
    "memory": "benchmarks.memory",
}
FOLDER: Final = Path(".bench")
COLUMNS: Final = ("metric", "value", "unit", "baseline", "ratio", "bar", "goal", "holds")


def main(names: list[str]) -> int:
    """Run; return 1 when a bar does not hold."""
    unknown = set(names) - ALL.keys()
    if unknown:
        sys.stderr.write(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}\n")
        return 2
    FOLDER.mkdir(exist_ok=True)
    console = Console()
    held = True
    for name in names or ALL:
        console.print(f"[bold]{name}[/] ...")
        found = importlib.import_module(ALL[name]).run()
        rows: list[dict[str, Any]] = asyncio.run(found) if inspect.iscoroutine(found) else found
        (FOLDER / f"{name}.json").write_text(json.dumps(rows, indent=2) + "\n")
        console.print(_table(rows))
        held = held and all(row["holds"] for row in rows)
    return 0 if held else 1


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*("-" if row[name] is None else str(row[name]) for name in COLUMNS))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
