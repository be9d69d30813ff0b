"""What people see: tables on standard output. Scripts use --json."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]
Column = tuple[str, str | Callable[[Row], Any]]

DAY_MS: Final = 86_400_000

JOBS: Final[tuple[Column, ...]] = (
    ("job", lambda row: f"{row['service']}/{row['id']}"),
    ("consumer", "consumer"),
    ("status", "status"),
    ("tries", "attempts"),
    ("code", "error_code"),
    ("key", "key"),
    ("message", lambda row: _cut(row["error_message"])),
    ("failed", lambda row: ago(row["failed_at"])),
    ("due", lambda row: ago(row["due_at"])),
)
GROUPS: Final[tuple[Column, ...]] = (
    ("fingerprint", "fingerprint"),
    ("rows", "rows"),
    ("consumer", "consumer"),
    ("type", "job_type"),
    ("code", "error_code"),
    ("status", lambda row: ", ".join(row["statuses"])),
    ("for example", lambda row: _cut(row["example"])),
    ("last", lambda row: ago(row["last_at"])),
)
RUNS: Final[tuple[Column, ...]] = (
    ("run", lambda row: f"{row['service']}/{row['id']}"),
    ("kind", lambda row: row["kind"] + (" (dry run)" if row["request"].get("dry_run") else "")),
    ("consumer", "consumer"),
    ("status", "status"),
    ("rows", lambda row: row["rows"] or ""),
    ("counts", lambda row: ", ".join(f"{name} {count}" for name, count in row["counts"].items())),
    ("asked for", lambda row: ago(row["created_at"])),
    ("error", lambda row: _cut(row["error"])),
)
TOPICS: Final[tuple[Column, ...]] = (
    ("topic", "topic"),
    ("owner", "owner"),
    ("key", "key"),
    ("partitions", "partitions"),
    ("kept", lambda row: "compacted" if row["compact"] else f"{row['retention_ms'] / DAY_MS:g} days"),
    ("records", "records"),
    ("ends", lambda row: " ".join(str(one["end_offset"]) for one in row["offsets"])),
    ("problem", "problem"),
)
LAG: Final[tuple[Column, ...]] = (
    ("consumer", "consumer"),
    ("topic", "topic"),
    ("partition", "partition"),
    ("settled", "settled_offset"),
    ("end", "end_offset"),
    ("lag", "lag_records"),
    ("behind", lambda row: "" if row["lag_s"] is None else duration(row["lag_s"])),
    ("last settled", lambda row: ago(row["settled_at"])),
    ("problem", "problem"),
)
NUMBERS: Final = frozenset({"rows", "tries", "partitions", "records", "partition", "settled", "end", "lag", "behind"})


def show(rows: Iterable[Row], columns: Iterable[Column]) -> None:
    """Print rows as a table, as wide as they need when nobody looks."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    columns = tuple(columns)
    for name, _ in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row, what) for _, what in columns))
    console().print(table)


def fields(row: Row, names: Iterable[str]) -> None:
    """Print some fields of one thing, a line each."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name in names:
        table.add_row(Text(name.replace("_", " "), style="bold"), _text(row[name]))
    console().print(table)


def say(line: str) -> None:
    """Print a line."""
    console().print(Text(line))


def console() -> Console:
    """Return standard output; wide when it is no terminal, so that nothing is cut."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=400)


def ago(time: str | None) -> str:
    """Return how long ago an ISO time is, or in how long."""
    if time is None:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    return f"in {duration(-seconds)}" if seconds < 0 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {name}"
    return f"{seconds:.0f} s"


def _cell(row: Row, what: str | Callable[[Row], Any]) -> Text:
    return _text(row[what] if isinstance(what, str) else what(row))


def _text(value: Any) -> Text:
    if value is None:
        return Text("")
    return Text(json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, (dict, list)) else _plain(value))


def _plain(value: Any) -> str:
    """Return text without control characters: what a failed job says came from anybody, and a terminal obeys it."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in str(value))


def _cut(message: str | None, length: int = 80) -> str:
    line = " ".join((message or "").split())
    return line if len(line) <= length else line[: length - 1] + "…"
