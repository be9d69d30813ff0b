"""Looks at brackets and OCOs: every second, and again at once where something was to be done."""

import asyncio
import logging

from services.broker.service.exits import Exits
from shared.db import is_rerun
from shared.errors import Transient

_log = logging.getLogger(__name__)


class Protecting:
    """Protects positions, on every replica: each look locks what it looks at."""

    name = "exits"

    def __init__(self, exits: Exits, every_s: float = 1.0) -> None:
        self.exits = exits
        self._every_s = every_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                found = await self.exits.turn()
            except Exception as error:
                if not is_rerun(error) and not isinstance(error, Transient):
                    raise
                _log.warning("broker.exits", extra={"error": repr(error)[:300]})
                found = 0
            await asyncio.sleep(self._every_s if not found else 0.05)
