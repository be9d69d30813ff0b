"""A Prometheus of a test's own, that asks one process every two seconds."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy.tools import find
from tests.conftest import eventually


@dataclass
class Prometheus:
    """One that runs."""

    http: httpx.AsyncClient

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """Return what a query finds now; fails where it is none."""
        answer = await self.http.get("/api/v1/query", params={"query": query})
        assert answer.status_code == httpx.codes.OK, f"{query}: {answer.text}"
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found

    async def range(self, query: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return what a query found between two moments, second by second."""
        params: dict[str, Any] = {"query": query, "start": start, "end": end, "step": "1"}
        answer = await self.http.get("/api/v1/query_range", params=params)
        found: list[dict[str, Any]] = answer.json()["data"]["result"]
        return found


@asynccontextmanager
async def asking(folder: Path, targets: Sequence[str]) -> AsyncGenerator[Prometheus]:
    """Run Prometheus. Raises ToolMissing."""
    program = await asyncio.to_thread(find, "prometheus")
    config = folder / "prometheus.yml"
    scrape = {"job_name": "openbell", "static_configs": [{"targets": list(targets)}]}
    wanted = {"global": {"scrape_interval": "2s", "scrape_timeout": "2s"}, "scrape_configs": [scrape]}
    await asyncio.to_thread(config.write_text, yaml.safe_dump(wanted))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with (folder / "prometheus.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            program,
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            await eventually(lambda: _ready(http))
            yield Prometheus(http)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/-/ready")).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
