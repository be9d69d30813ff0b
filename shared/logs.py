"""Logs: one JSON object a line, named by event, with what the code knows beside it (`extra=`) and the trace id.

log.warning("event_parked", extra={"consumer": name, "code": code})
"""

import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
from opentelemetry import trace

from shared.identity import REQUEST_ID

_OURS: Final = ("openbell", "services", "shared", "deploy", "cli", "__main__")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Turns a log record into a line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if (request_id := REQUEST_ID.get()) is not None:
            line["request_id"] = request_id
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = format(context.trace_id, "032x")
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode("utf-8", "replace")


def configure(level: str, file: Path | None = None) -> None:
    """Send all logs to standard error, or to a file, as JSON. Libraries speak from warnings on, whatever the level.

    Below that some of them write whole requests, keys and addresses included.
    """
    handler = logging.FileHandler(file) if file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for ours in _OURS:
        logging.getLogger(ours).setLevel(level.upper())
    root = logging.getLogger()
    root.setLevel(max(root.level, logging.WARNING))
    access = logging.getLogger("uvicorn.access")
    access.propagate = False  # it speaks whenever it finds a handler, whatever its settings
    kafka = logging.getLogger("aiokafka")
    kafka.setLevel(logging.CRITICAL)  # each rebalance is an error to it; our loop tells what matters
