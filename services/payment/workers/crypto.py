"""Rounds over the chains, three a minute each, by one replica."""

import asyncio
from datetime import datetime
from typing import Protocol

from services.payment.service.crypto_watch import CryptoWatch
from shared.schedule import Job

EVERY_20_S = "*/20 * * * * *"


class Closable(Protocol):
    """What has connections."""

    async def close(self) -> None:
        """Give them up."""
        ...


def rounds(watch: CryptoWatch) -> Job:
    """Return the job that reads one chain. An operator runs it at once by its name, crypto-<chain>."""

    async def run(at: datetime) -> None:
        del at
        await watch.round()

    return Job(f"crypto-{watch.name}", EVERY_20_S, run)


class Connections:
    """Closes what the chains are read with when the service ends."""

    name = "crypto-connections"

    def __init__(self, *closable: Closable) -> None:
        self._closable = closable

    async def run(self) -> None:
        """Wait until cancelled, then close."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for one in self._closable:
                await one.close()
