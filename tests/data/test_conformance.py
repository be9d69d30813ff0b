"""What every source of chains must do, the real ones and the simulated one alike."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import pytest_asyncio

from services.data.adapters.cboe import CboeSource
from services.data.adapters.replay import ReplaySource
from services.data.adapters.simulator import SimulatorSource
from services.data.domain.chain import Snapshot, Validators
from services.data.domain.columns import Floats
from services.data.domain.symbols import occ_columns
from services.data.ports import ChainSource, Ended, Unchanged
from shared.clock import new_id
from shared.contracts.data import CHAIN_SCHEMA, ChainCollected
from shared.errors import Invalid, NotFound
from shared.sessions import Sessions
from tests.data.fake_cboe import FakeCboe, answer

NOW = datetime(2026, 7, 24, 18, 0, 30, tzinfo=UTC)  # inside the session of a Friday
SATURDAY = datetime(2026, 7, 25, 18, 0, tzinfo=UTC)


@pytest_asyncio.fixture(params=["cboe", "replay", "simulator"])
async def source(
    request: pytest.FixtureRequest,
    sessions: Sessions,
    closes: dict[str, Floats],
    cboe: FakeCboe,
    tmp_path: Path,
) -> AsyncIterator[ChainSource]:
    source: ChainSource
    match request.param:
        case "cboe":
            cboe.says("AAPL", answer())
            source = CboeSource(base_url=cboe.url, sessions=sessions, clock=lambda: NOW, sleep=asyncio.sleep)
        case "replay":
            (tmp_path / "aapl.json").write_text(json.dumps(answer()))
            source = ReplaySource(folder=tmp_path, sessions=sessions, clock=lambda: NOW)
        case _:
            source = SimulatorSource(
                closes=closes, sessions=sessions, clock=lambda: NOW, seed=1, unusual=5, session_s=86_400.0
            )
    yield source
    await source.aclose()


async def snapshot_of(source: ChainSource) -> Snapshot:
    found = await source.fetch("AAPL", Validators())
    assert isinstance(found, Snapshot)
    return found


async def test_01_its_chain_has_the_contracts_schema_and_rows(source: ChainSource) -> None:
    found = await snapshot_of(source)
    assert found.contracts.schema.equals(CHAIN_SCHEMA)
    assert found.contracts.num_rows > 0


async def test_02_the_header_names_source_symbol_and_honest_times(source: ChainSource) -> None:
    header = (await snapshot_of(source)).header
    assert header.symbol == "AAPL"
    assert header.source == source.name
    assert header.simulated == (source.name == "simulator")
    assert header.delay_s == source.delay_s >= 0
    assert header.as_of <= NOW
    assert header.as_of.utcoffset() == timedelta(0)
    assert header.close is not None
    assert header.close > 0


async def test_03_no_contract_expired_before_its_session(source: ChainSource) -> None:
    found = await snapshot_of(source)
    names = found.contracts["contract"].to_pylist()
    assert len(set(names)) == len(names)
    told = occ_columns(names)
    assert told.valid.all()
    assert told.strike.tolist() == found.contracts["strike"].to_pylist()
    assert min(found.contracts["expiration"].to_pylist()) >= found.header.session


async def test_04_asked_again_with_its_validators_it_has_nothing_new(source: ChainSource) -> None:
    found = await snapshot_of(source)
    assert isinstance(await source.fetch("AAPL", found.validators), Unchanged | Ended)


async def test_05_a_symbol_outside_the_grammar_is_invalid(source: ChainSource) -> None:
    with pytest.raises(Invalid):
        await source.fetch("../AAPL", Validators())


async def test_06_an_unknown_symbol_is_not_found(source: ChainSource) -> None:
    with pytest.raises(NotFound):
        await source.fetch("ZZZZ", Validators())


async def test_07_it_offers_what_it_can_answer(source: ChainSource) -> None:
    assert source.offers(["AAPL"]) == ("AAPL",)


async def test_08_it_is_open_in_the_session_and_only_the_exchange_closes(source: ChainSource) -> None:
    assert source.opens_in_s(NOW) == 0.0
    assert (source.opens_in_s(SATURDAY) > 0) == (source.name == "cboe")


async def test_09_its_quotes_are_of_the_same_source(source: ChainSource) -> None:
    if source.quotes is not None:
        quote = source.quotes.take("AAPL")
        assert (quote.symbol, quote.source, quote.simulated) == ("AAPL", source.name, source.name == "simulator")
        assert quote.as_of == (await snapshot_of(source)).header.as_of


async def test_10_its_chain_survives_the_journey(source: ChainSource) -> None:
    found = await snapshot_of(source)
    event = ChainCollected(id=new_id(), time=NOW, header=found.header, contracts=found.contracts)
    read = ChainCollected.from_bytes(event.to_bytes(), id=event.id, time=NOW)
    assert read.header == found.header
    assert read.contracts.equals(found.contracts)


async def test_11_it_can_be_closed_twice(source: ChainSource) -> None:
    await source.aclose()
    await source.aclose()
