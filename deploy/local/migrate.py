"""`make migrate`: bring every schema to the newest version.

With OPENBELL_DATABASE_URL set, that database (its user must be allowed to create roles); without it, the embedded
Postgres of `make run`, which must not be running at the same time.
"""

import asyncio
import os
import sys

from deploy.local import postgres
from deploy.local.stack import DATABASE, HOME
from shared import migrate


def main() -> int:
    """Migrate; return the exit code."""
    if "OPENBELL_DATABASE_URL" in os.environ:
        return migrate.main(["up"])
    with postgres.start(HOME / "postgres") as server:
        asyncio.run(migrate.upgrade_all(f"{server.dsn.rpartition('/')[0]}/{DATABASE}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
