"""Make an administrator. Nobody can become one over HTTP.

python -m services.api.admin ada@example.com     prints the API key, this once
"""

import asyncio
import sys
from collections.abc import Sequence

from services.api.main import create_admin
from shared.service import Environment, Service


async def _main(email: str) -> None:
    service = Service("api", Environment())
    try:
        sys.stdout.write(await create_admin(service, email) + "\n")
    finally:
        await service.db.close()


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    match list(arguments):
        case [email] if "@" in email:
            asyncio.run(_main(email))
            return 0
        case _:
            sys.stderr.write((__doc__ or "") + "\n")
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
