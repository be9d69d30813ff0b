"""What a process logs at which level: ours as it is told, libraries from warnings on."""

import json
import subprocess
import sys
from typing import Final

import pytest

SAYS: Final = """
import logging, sys, threading, http.server
import urllib3
from shared import logs

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
server.RequestHandlerClass.log_message = lambda *_: None
threading.Thread(target=server.serve_forever, daemon=True).start()
logs.configure(sys.argv[1])
urllib3.PoolManager().request("HEAD", f"http://127.0.0.1:{server.server_port}/?key=a-secret")
for name in ("services.alerts.main", "shared.process", "openbell.data", "__main__", "a.library"):
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)(f"{name} at {level}")
server.shutdown()
"""
OURS: Final = ("services.alerts.main", "shared.process", "openbell.data", "__main__")
LEVELS: Final = ("debug", "info", "warning", "error")


@pytest.mark.parametrize(
    ("level", "ours", "library"),
    [
        ("DEBUG", LEVELS, ("warning", "error")),
        ("info", LEVELS[1:], ("warning", "error")),
        ("ERROR", ("error",), ("error",)),
    ],
)
def test_libraries_speak_from_warnings_on_whatever_ours_do(
    level: str, ours: tuple[str, ...], library: tuple[str, ...]
) -> None:
    command = (sys.executable, "-c", SAYS, level)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    said = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    expected = [f"{name} at {one}" for name in OURS for one in ours] + [f"a.library at {one}" for one in library]
    assert said == expected, "and nothing of what urllib3 writes at debug: addresses with keys"
