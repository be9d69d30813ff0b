import contextlib
import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from deploy.local import kafka as local
from deploy.local.processes import ServerError
from tests.conformance.backends import Memory, Server
from tests.conformance.lacks import LACKS


@pytest.fixture(scope="package")
def servers() -> Generator[dict[str, Server | str]]:
    """Servers that were started, by kind; or why one cannot be had here."""
    started: dict[str, Server | str] = {}
    yield started
    for server in started.values():
        if isinstance(server, Server):
            server.running.stop()
            shutil.rmtree(server.folder, ignore_errors=True)


def _lacking(request: pytest.FixtureRequest, kind: str) -> None:
    if reason := LACKS[kind].get(request.node.originalname):
        request.applymarker(pytest.mark.xfail(reason=f"{kind}: {reason}", strict=True))


@pytest.fixture(params=list(LACKS))
def backend(request: pytest.FixtureRequest, servers: dict[str, Server | str]) -> Any:
    """Each Kafka in turn; what it lacks is expected to fail."""
    _lacking(request, request.param)
    return Memory() if request.param == "memory" else _served(servers, request.param)


@pytest.fixture(params=[kind for kind in LACKS if kind != "memory"])
def wire(request: pytest.FixtureRequest, servers: dict[str, Server | str]) -> Server:
    """Each Kafka that listens."""
    _lacking(request, request.param)
    return _served(servers, request.param)


def _served(servers: dict[str, Server | str], kind: str) -> Server:
    if kind not in servers:
        servers[kind] = _start(kind)
    if isinstance(found := servers[kind], str):
        pytest.skip(found)
    return found


def _start(kind: str) -> Server | str:
    folder = Path(tempfile.mkdtemp(prefix="openbell-conformance-"))
    try:
        return Server(local.resolve(folder, kind), folder)
    except ServerError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
        return f"{kind} cannot be had here: {error}"
