"""Memory at rest: every service as a process of its own, and all of them in one as `make run` has them.

The figure is resident memory (RSS), shared libraries and all. The baseline is an interpreter that imported nothing.
"""

import asyncio
import contextlib
import subprocess
import sys
from typing import Any, Final

import psutil

from benchmarks.stack import ROOT, row, servers, service
from deploy.local.stack import Stack
from shared.schema import SERVICES

BAR_MB: Final = 200.0
WHOLE_BAR_MB: Final = 1500.0
REST_S: Final = 15.0
MB: Final = 1_048_576


def run() -> list[dict[str, Any]]:
    """Measure; return a row a service, and one for the whole of `make run` without Apache Kafka."""
    bare = subprocess.run(
        [sys.executable, "-c", "import os; print(open('/proc/self/statm').read())"],
        check=True,
        capture_output=True,
        text=True,
    )
    baseline = int(bare.stdout.split()[1]) * 4096 / MB
    with servers() as below:
        rows = asyncio.run(_each(below, baseline))
    return [*rows, asyncio.run(_whole(baseline))]


async def _each(below: Stack, baseline: float) -> list[dict[str, Any]]:
    """Run every service as a process; return what each holds at rest."""
    async with contextlib.AsyncExitStack() as running:
        pids: dict[str, int] = {}
        for name in SERVICES:
            pids[name], _ = await running.enter_async_context(service(below, name, OPENBELL_DATA_SOURCE="simulator"))
        await asyncio.sleep(REST_S)
        held = {name: psutil.Process(pid).memory_info().rss / MB for name, pid in pids.items()}
    return [
        row(f"memory at rest, {name}", used, "MB", baseline=baseline, bar=BAR_MB, holds=used < BAR_MB)
        for name, used in held.items()
    ]


async def _whole(baseline: float) -> dict[str, Any]:
    """Run `make run` and add up its processes, Java apart."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deploy.local.run", "--port", "0"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(180):
            while b"Openbell is up" not in await process.stdout.readline():
                pass
        await asyncio.sleep(REST_S)
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
        used = sum(_proportional(one) for one in family if "java" not in one.name()) / MB
    finally:
        process.terminate()
        await process.wait()
    return row(
        "memory of make run whole, Apache Kafka apart (shared pages once)",
        used,
        "MB",
        baseline=baseline,
        bar=WHOLE_BAR_MB,
        holds=used < WHOLE_BAR_MB,
    )


def _proportional(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)
