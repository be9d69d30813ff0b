"""Rounds over the chains, three a minute each, by one replica."""

from datetime import datetime

from services.payment.service.crypto_watch import CryptoWatch
from shared.schedule import Job

EVERY_20_S = "*/20 * * * * *"


def rounds(watch: CryptoWatch) -> Job:
    """Return the job that reads one chain. An operator runs it at once by its name, crypto-<chain>."""

    async def run(at: datetime) -> None:
        del at
        await watch.round()

    return Job(f"crypto-{watch.name}", EVERY_20_S, run)
