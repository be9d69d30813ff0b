"""`make asyncapi`: write docs/asyncapi.json, the AsyncAPI 3 document of all events."""

import importlib
import sys
from pathlib import Path
from typing import Any

import orjson

from shared.contracts.base import Event
from shared.messaging.asyncapi import document
from shared.schema import SERVICES

TARGET = Path("docs/asyncapi.json")


def build() -> dict[str, Any]:
    """Return the document; imports services' cards only."""
    cards = {name: importlib.import_module(f"services.{name}") for name in SERVICES}
    published: list[type[Event]] = list(dict.fromkeys(event for card in cards.values() for event in card.PUBLISHES))
    return document(published, {name: card.READS for name, card in cards.items()}, "1")


def written(found: dict[str, Any]) -> bytes:
    """Return the document's text; sorted, for the order in which FastStream finds things differs between runs."""
    return orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE | orjson.OPT_SORT_KEYS)


def main() -> int:
    """Write the document; return the exit code."""
    TARGET.write_bytes(written(build()))
    sys.stdout.write(f"wrote {TARGET}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
