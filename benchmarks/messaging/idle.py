"""What a service costs that has nothing to do: share of a core and resident memory, each as a process of its own."""

import asyncio
import contextlib
from typing import Any, Final

import psutil

from benchmarks.messaging.bank import row
from benchmarks.stack import servers, service
from deploy.local.stack import Stack

SERVICES: Final = ("api", "alerts", "detector", "data")
LEAN: Final = ("api", "alerts")
"""The services without a data-frame library."""
NOTHING: Final = {"OPENBELL_DATA_SOURCE": "cboe", "OPENBELL_DATA_SYMBOLS": ""}
"""A source of chains that is asked for none: the simulator would keep everybody busy."""
SETTLE_S: Final = 15.0
WATCH_S: Final = 40.0
BAR_CORE: Final = 1.0
BAR_MB: Final = 120.0


async def _watch(below: Stack) -> list[dict[str, Any]]:
    async with contextlib.AsyncExitStack() as running:
        pids = {name: (await running.enter_async_context(service(below, name, **NOTHING)))[0] for name in SERVICES}
        found = {name: psutil.Process(pid) for name, pid in pids.items()}
        await asyncio.sleep(SETTLE_S)
        before = {name: sum(process.cpu_times()[:2]) for name, process in found.items()}
        await asyncio.sleep(WATCH_S)
        used = {name: sum(process.cpu_times()[:2]) - before[name] for name, process in found.items()}
        held = {name: process.memory_info().rss / 1_048_576 for name, process in found.items()}
    rows: list[dict[str, Any]] = []
    for name in SERVICES:
        share = 100 * used[name] / WATCH_S
        rows.append(row(f"idle {name}, share of a core", share, "%", None, BAR_CORE, holds=share < BAR_CORE))
        if name in LEAN:
            rows.append(row(f"idle {name}, memory", held[name], "MB", None, BAR_MB, holds=held[name] < BAR_MB))
    return rows


def run() -> list[dict[str, Any]]:
    """Measure; one or two lines for each service."""
    with servers() as below:
        return asyncio.run(_watch(below))
