import asyncio
import contextlib
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.data.adapters.cboe import CboeSource
from services.data.adapters.replay import ReplaySource
from services.data.adapters.simulator import SimulatorSource
from services.data.domain.symbols import parse_symbol
from services.data.main import build, choose_source
from services.data.settings import DataSettings
from shared.errors import Invalid
from shared.service import Environment
from shared.sessions import Sessions
from shared.settings import SharedSettings
from tests.conftest import eventually
from tests.data.fake_cboe import FakeCboe, answer

NOW = datetime(2026, 7, 24, 18, 0, 30, tzinfo=UTC)
NOBODY = "http://127.0.0.1:9"


def settings(**fields: Any) -> DataSettings:
    return DataSettings(_env_file=None, **{"cboe_base_url": NOBODY} | fields)  # pyright: ignore[reportCallIssue]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "aapl.json").write_text(json.dumps(answer()))
    return tmp_path


async def test_auto_takes_the_recordings_then_cboe_then_the_simulator(
    cboe: FakeCboe, folder: Path, sessions: Sessions
) -> None:
    for given, kind in (
        (settings(replay_dir=folder, cboe_base_url=cboe.url), ReplaySource),
        (settings(cboe_base_url=cboe.url), CboeSource),
        (settings(), SimulatorSource),
    ):
        source = await choose_source(given, lambda: NOW, sessions)
        assert isinstance(source, kind)
        await source.aclose()


async def test_a_named_source_is_taken_whatever_else_is_there(cboe: FakeCboe, folder: Path, sessions: Sessions) -> None:
    for name, kind in (("cboe", CboeSource), ("replay", ReplaySource), ("simulator", SimulatorSource)):
        source = await choose_source(settings(source=name, replay_dir=folder), lambda: NOW, sessions)
        assert isinstance(source, kind)
        await source.aclose()


async def test_recordings_are_read_beside_the_loop(folder: Path, sessions: Sessions) -> None:
    fifo = folder / "slow.json"
    os.mkfifo(fifo)  # whoever reads it waits for the writer
    opening = asyncio.create_task(choose_source(settings(source="replay", replay_dir=folder), lambda: NOW, sessions))
    writer = -1

    def reading() -> bool:
        nonlocal writer
        with contextlib.suppress(OSError):  # nobody reads yet
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        return writer >= 0

    await eventually(reading)
    assert not opening.done()
    os.close(writer)
    source = await opening
    assert isinstance(source, ReplaySource)
    assert source.passed_over == [fifo]


async def test_a_replay_without_a_folder_is_refused(sessions: Sessions) -> None:
    with pytest.raises(Invalid):
        await choose_source(settings(source="replay"), lambda: NOW, sessions)


def test_symbols_come_comma_separated_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBELL_DATA_SYMBOLS", "AAPL, brk.b,_SPX,")
    assert settings().symbols == ("AAPL", "brk.b", "_SPX")


def test_the_default_symbols_are_symbols() -> None:
    symbols = settings().symbols
    assert len(symbols) == len(set(symbols)) == 20
    assert tuple(parse_symbol(symbol) for symbol in symbols) == symbols


def test_a_bad_symbol_stops_the_service_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBELL_DATA_SYMBOLS", "AAPL,../etc")
    with pytest.raises(Invalid):
        build(Environment(SharedSettings(_env_file=None)))  # pyright: ignore[reportCallIssue]


def test_reading_keeping_and_showing_a_chain_never_loads_pandas() -> None:
    """It would stay, 45 MB of it. pyarrow imports it behind one's back."""
    program = """
import json, sys
from datetime import UTC, datetime
import services.data.main
from services.data.adapters.cboe import parse_answer
from shared.sessions import Sessions, TradingSession
from services.data.routes import as_answer
from services.data.service import LastGood
from shared.clock import new_id
from shared.contracts.data import ChainCollected
day = datetime(2026, 7, 24, tzinfo=UTC)
sessions = Sessions([TradingSession(day.date(), day.replace(hour=13), day.replace(hour=20))])
found = parse_answer(sys.stdin.buffer.read(), source="cboe", sessions=sessions)
event = ChainCollected(id=new_id(), time=day, header=found.header, contracts=found.contracts)
read = ChainCollected.from_bytes(event.to_bytes(), id=event.id, time=day)
print(as_answer(LastGood(read.header, read.contracts, 0.0, 0)).count)
print("pandas" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(answer()), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["2", "False"]
