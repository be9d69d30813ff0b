import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import services.data
from services.data.adapters.cboe import CboeSource
from services.data.adapters.replay import ReplaySource
from services.data.adapters.simulator import SimulatorSource
from services.data.domain.symbols import parse_symbol
from services.data.main import build, choose_source
from services.data.settings import DataSettings
from shared.contracts.data import ChainCollected, QuoteTaken
from shared.errors import Invalid
from shared.service import Environment
from shared.settings import SharedSettings
from tests.data.fake_cboe import FakeCboe, answer

NOW = datetime(2026, 7, 24, 18, 0, 30, tzinfo=UTC)
NOBODY = "http://127.0.0.1:9"


def settings(**fields: Any) -> DataSettings:
    return DataSettings(_env_file=None, **{"cboe_base_url": NOBODY} | fields)  # pyright: ignore[reportCallIssue]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "aapl.json").write_text(json.dumps(answer()))
    return tmp_path


async def test_auto_takes_the_recordings_then_cboe_then_the_simulator(cboe: FakeCboe, folder: Path) -> None:
    for given, kind in (
        (settings(replay_dir=folder, cboe_base_url=cboe.url), ReplaySource),
        (settings(cboe_base_url=cboe.url), CboeSource),
        (settings(), SimulatorSource),
    ):
        source = await choose_source(given, lambda: NOW)
        assert isinstance(source, kind)
        await source.aclose()


async def test_a_named_source_is_taken_whatever_else_is_there(cboe: FakeCboe, folder: Path) -> None:
    for name, kind in (("cboe", CboeSource), ("replay", ReplaySource), ("simulator", SimulatorSource)):
        source = await choose_source(settings(source=name, replay_dir=folder), lambda: NOW)
        assert isinstance(source, kind)
        await source.aclose()


async def test_a_replay_without_a_folder_is_refused() -> None:
    with pytest.raises(Invalid):
        await choose_source(settings(source="replay"), lambda: NOW)


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


def test_the_card_names_what_the_service_publishes() -> None:
    assert (ChainCollected, QuoteTaken) == services.data.PUBLISHES
    assert all(event.topic.owner == services.data.OWNS for event in services.data.PUBLISHES)


def test_importing_the_service_loads_no_pandas_and_starts_nothing() -> None:
    program = "import sys, services.data.main; print('pandas' in sys.modules, 'exchange_calendars' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
