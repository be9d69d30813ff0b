"""Golden files: one event of every version that was ever published, as it lay in Kafka.

    python -m tests.contracts.golden     write the files that are missing

A new type or a new `.vN` needs three steps: the class in shared/contracts, an example in tests/contracts/examples.py,
and this command. A file that exists is never written again: records of its version still lie in topics, in
`failed_jobs` and in backups. If a test says that a file no longer parses, it is the class that has to change back.

A file holds the headers and, for JSON, the body as `data`. A body of Arrow cannot be read by eye: there `data` is its
base64, and `header` and `contracts` say what must come out of it.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any, Final

from shared.contracts.base import Event
from shared.contracts.data import ChainCollected
from shared.messaging.record import Record, headers_of
from tests.contracts.examples import EXAMPLES

FOLDER: Final = Path(__file__).with_name("golden")


def record_of(golden: dict[str, Any]) -> Record:
    """Return the Kafka record that a golden file describes."""
    data = golden["data"]
    body = base64.b64decode(data) if isinstance(data, str) else json.dumps(data).encode()
    headers = tuple((name.encode(), value.encode()) for name, value in golden["headers"].items())
    return Record("golden", 0, 0, golden["key"].encode(), body, headers)


def golden_of(event: Event) -> dict[str, Any]:
    """Return what the golden file of an event says."""
    owner = event.type.partition(".")[0]
    headers = {name.decode(): (value or b"").decode() for name, value in headers_of(event, f"/openbell/{owner}")}
    about: dict[str, Any] = {"headers": headers, "key": event.key}
    if event.content_type == "application/json":
        return about | {"data": meaning(event)}
    return about | {"data": base64.b64encode(event.to_bytes()).decode()} | meaning(event)


def meaning(event: Event) -> dict[str, Any]:
    """Return all that an event's body says, as JSON."""
    if not isinstance(event, ChainCollected):
        return json.loads(event.to_bytes())
    rows = [{**row, "expiration": row["expiration"].isoformat()} for row in event.contracts.to_pylist()]
    return {"header": event.header.model_dump(mode="json"), "contracts": rows}


def meant(golden: dict[str, Any]) -> dict[str, Any]:
    """Return what a golden file says that its body means."""
    data = golden["data"]
    return data if isinstance(data, dict) else {name: golden[name] for name in ("header", "contracts")}


def main() -> int:
    """Write what is missing; return the exit code."""
    FOLDER.mkdir(exist_ok=True)
    for event in EXAMPLES:
        file = FOLDER / f"{event.type}.json"
        if not file.exists():
            file.write_text(json.dumps(golden_of(event), indent=2) + "\n")
            sys.stdout.write(f"wrote {file}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
