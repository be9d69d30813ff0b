"""The OpenAPI documents of all services as one: what can be reached through the gateway.

python -m services.api.openapi docs/openapi.json     write it (nothing is started, no database is needed)
"""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.api.documents import merge
from services.api.forwarding import RULES
from shared.http.document import document
from shared.service import Environment, Service


def offline() -> dict[str, Any]:
    """Build every service, start none, and return the merged document."""
    names = sorted({rule.service for rule in RULES})
    own = document(_build("api").app)
    return merge(own, {name: document(_build(name).app) for name in names}, RULES)


def _build(name: str) -> Service:
    built: Service = importlib.import_module(f"services.{name}.main").build(Environment())
    return built


def main(arguments: Sequence[str]) -> int:
    """Write the document to the file named, or to standard output."""
    text = msgspec.json.format(msgspec.json.encode(offline(), enc_hook=str), indent=2) + b"\n"
    match list(arguments):
        case []:
            sys.stdout.buffer.write(text)
        case [target]:
            Path(target).write_bytes(text)
        case _:
            sys.stderr.write((__doc__ or "") + "\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
