"""An ASGI application served from a thread of this process, on a free port of 127.0.0.1."""

import contextlib
import socket
import threading
from collections.abc import Generator
from typing import Any

import uvicorn


@contextlib.contextmanager
def serving(app: Any, name: str, ws: Any = "none") -> Generator[str]:
    """Serve; the value is the address, "http://127.0.0.1:PORT". Requests under way at the end are cut.

    `ws` is uvicorn's name of a WebSocket protocol for an application that speaks it.
    """
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, interface="asgi3", lifespan="off", log_config=None, access_log=False, ws=ws)
    config.timeout_graceful_shutdown = 1
    server = _Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), name=name, daemon=True)
    thread.start()
    try:
        assert server.up.wait(10), f"{name} does not come up"
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.force_exit = True
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), f"{name} does not end, and would take every later test's time"


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    def install_signal_handlers(self) -> None:
        """A thread has none."""
