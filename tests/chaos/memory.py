"""How much memory this process takes."""

import re
from pathlib import Path

import pytest

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class Memory:
    """How far this process's memory rises from here on; skips the test where Linux does not tell."""

    def __init__(self) -> None:
        try:
            _CLEAR.write_text("5")  # forget the peak
        except OSError as error:
            pytest.skip(f"the peak of a process's memory cannot be measured here: {error}")
        self._from = _kb("VmRSS")

    def peak_mb(self) -> float:
        return (_kb("VmHWM") - self._from) / 1024


def _kb(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", _STATUS.read_text())
    assert found
    return int(found[1])
