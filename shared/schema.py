"""Which services there are, and how new a schema each one's code needs. Migrations themselves: shared.migrate.

A migration's revision is the number that its file begins with (a test holds them to it), so that a service knows what
it needs without loading Alembic, which is 14 MB.
"""

from pathlib import Path
from typing import Final

SERVICES: Final = ("api", "alerts", "broker", "data", "detector", "payment")
_ROOT: Final = Path(__file__).parents[1]


def migrations(service: str) -> Path:
    """Return the folder of a service's migrations."""
    return _ROOT / "services" / service / "migrations"


def head(service: str) -> str:
    """Return the newest revision that the code knows. Raises LookupError when there is none."""
    revisions = sorted(file.name.partition("_")[0] for file in (migrations(service) / "versions").glob("[0-9]*.py"))
    if not revisions:
        raise LookupError(f"services/{service}/migrations has no revisions")
    return revisions[-1]
