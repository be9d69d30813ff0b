"""Keeping service processes lean: without pandas, and with a collector that seldom runs.

pyarrow loads pandas for some conversions as soon as it is installed: 45 MB that a service keeps for ever and never
uses. It is installed because exchange_calendars needs it, which runs in a child process of its own.
"""

import gc
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoPandas(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is kept out of service processes", name=fullname)
        return None


def keep_pandas_out() -> None:
    """Make `import pandas` fail in this process from now on, as if it were not installed."""
    sys.meta_path.insert(0, _NoPandas())


def collect_rarely() -> None:
    """Look for cyclic garbage less often, and never among what is there now.

    A batch of events is tens of thousands of young objects, none of them in a cycle: with Python's own thresholds the
    collector took two fifths of a batch consumer's time (docs/performance.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
