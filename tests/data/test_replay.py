import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.data.adapters.replay import ReplaySource
from services.data.domain.chain import Snapshot, Validators
from services.data.ports import Ended, Unchanged
from shared.errors import Invalid, NotFound
from shared.sessions import Sessions
from tests.data.fake_cboe import answer, row

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)


def record(folder: Path, name: str, symbol: str, timestamp: str) -> None:
    rows = [row(f"{symbol}260821C00330000")]
    (folder / name).write_text(json.dumps(answer(symbol, timestamp=timestamp, rows=rows)))


async def test_files_come_once_in_the_order_of_their_timestamps(tmp_path: Path, sessions: Sessions) -> None:
    record(tmp_path, "a.json", "AAPL", "2026-07-24 18:10:00")
    record(tmp_path, "b.json", "MSFT", "2026-07-24 18:05:00")
    record(tmp_path, "c.json", "AAPL", "2026-07-24 18:00:00")
    (tmp_path / "quote.json").write_text('{"timestamp": "2026-07-25 21:02:04", "data": {"close": 1}}')
    (tmp_path / "broken.json").write_text("{")
    source = ReplaySource(folder=tmp_path, sessions=sessions, clock=lambda: NOW)
    assert [path.name for path in source.passed_over] == ["broken.json", "quote.json"]
    told: list[tuple[str, str]] = []
    for _ in range(3):
        (symbol,) = source.offers(["TSLA"])  # the folder decides, not the settings
        found = await source.fetch(symbol, Validators())
        assert isinstance(found, Snapshot)
        told.append((found.header.symbol, f"{found.header.as_of:%H:%M}"))
    assert told == [("AAPL", "18:00"), ("MSFT", "18:05"), ("AAPL", "18:10")]
    assert isinstance(await source.fetch(source.offers([])[0], Validators()), Ended)
    with pytest.raises(NotFound):
        await source.fetch("TSLA", Validators())


async def test_the_pace_holds_the_next_file_back(tmp_path: Path, sessions: Sessions) -> None:
    record(tmp_path, "a.json", "AAPL", "2026-07-24 18:00:00")
    record(tmp_path, "b.json", "AAPL", "2026-07-24 18:01:00")
    now = [NOW]
    source = ReplaySource(folder=tmp_path, sessions=sessions, clock=lambda: now[0], pace_s=30.0)
    assert isinstance(await source.fetch("AAPL", Validators()), Snapshot)
    now[0] += timedelta(seconds=29)
    assert isinstance(await source.fetch("AAPL", Validators()), Unchanged)
    now[0] += timedelta(seconds=1)
    assert isinstance(await source.fetch("AAPL", Validators()), Snapshot)


async def test_a_recording_keeps_its_own_time_and_is_not_simulated(recorded: Path, sessions: Sessions) -> None:
    source = ReplaySource(folder=recorded, sessions=sessions, clock=lambda: NOW)
    found = await source.fetch("AAPL", Validators())
    assert isinstance(found, Snapshot)
    assert (found.header.source, found.header.simulated, found.header.delay_s) == ("replay", False, 900.0)
    assert found.header.as_of == datetime(2026, 7, 25, 3, 44, 38, tzinfo=UTC)


def test_a_folder_without_recordings_is_refused_at_once(tmp_path: Path, sessions: Sessions) -> None:
    with pytest.raises(Invalid):
        ReplaySource(folder=tmp_path, sessions=sessions, clock=lambda: NOW)
    with pytest.raises(Invalid):
        ReplaySource(folder=tmp_path / "missing", sessions=sessions, clock=lambda: NOW)
