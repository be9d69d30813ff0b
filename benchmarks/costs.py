"""What processes have cost: unlike seconds on the clock it hardly depends on what else a machine does."""

import contextlib
from typing import Any, Final

import psutil

from benchmarks.stack import row

MB: Final = 1_048_576


class Costs:
    """What the service's process and Postgres's have used so far."""

    def __init__(self, pid: int, backend: int) -> None:
        self._service = psutil.Process(pid)
        postgres = psutil.Process(backend).parent()
        assert postgres is not None
        self._postgres = postgres
        self.most_mb = 0.0

    def memory_mb(self) -> float:
        """Return the service's resident memory now; `most_mb` is the most that was seen."""
        now = self._service.memory_info().rss / MB
        self.most_mb = max(self.most_mb, now)
        return now

    def now(self) -> tuple[float, float]:
        """Return processor seconds: of the service, and of Postgres."""
        return _seconds(self._service), sum(map(_seconds, [self._postgres, *self._postgres.children()]))

    def rows(self, what: str, before: tuple[float, float], count: int) -> list[dict[str, Any]]:
        """Return lines for what each of `count` rows has cost since `before`."""
        spent = [(now - then) / max(1, count) * 1e6 for now, then in zip(self.now(), before, strict=True)]
        return [
            row(f"{what}: processor time of {whose}", used, "us", holds=True)
            for whose, used in zip(("the service", "Postgres"), spent, strict=True)
        ]


def _seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0
