"""Starts child.py, to be stopped and killed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.messaging.harness import Probe

_ROOT = Path(__file__).parents[2]


def child(probe: Probe, what: str) -> subprocess.Popen[bytes]:
    """Start `relay` or `consumer` of the probe service in a process of its own."""
    arguments = [probe.url, probe.address.bootstrap, probe.topic.name, probe.name, str(probe.address.static_members)]
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("child.py")), what, *arguments],
        stdout=subprocess.PIPE,
        cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
