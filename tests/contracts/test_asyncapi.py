"""The document of all events says the same on every machine."""

import os
import subprocess
import sys
from pathlib import Path

from deploy.local import asyncapi

ROOT = Path(__file__).resolve().parents[2]
_WRITE = "import sys; from deploy.local import asyncapi; sys.stdout.buffer.write(asyncapi.written(asyncapi.build()))"


def test_the_document_is_the_one_in_the_repository_in_whatever_order_its_parts_are_found():
    documented = (ROOT / asyncapi.TARGET).read_text()
    for seed in ("0", "1"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", _WRITE], capture_output=True, text=True, check=True, cwd=ROOT, env=env
        )
        assert done.stdout == documented, "run `make asyncapi`"
