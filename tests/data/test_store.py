from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.data.adapters.simulator import SimulatorSource
from services.data.domain.chain import Quote, Snapshot, Validators
from services.data.domain.columns import Floats
from services.data.service import DECODED, DataService
from services.data.store import SnapshotStore
from shared.contracts.data import ChainCollected
from shared.contracts.quotes import QuoteTaken, Source
from shared.db import Database
from shared.errors import Invalid, NotFound, Transient
from shared.sessions import Sessions

NOW = datetime(2026, 11, 22, 6, 0, tzinfo=UTC)


async def snapshot(
    closes: dict[str, Floats], sessions: Sessions, at: datetime = NOW, source: Source = "simulator"
) -> Snapshot:
    simulator = SimulatorSource(
        closes=closes, sessions=sessions, clock=lambda: at, seed=1, unusual=5, session_s=86_400.0
    )
    found = await simulator.fetch("AAPL", Validators())
    assert isinstance(found, Snapshot)
    header = found.header.model_copy(update={"source": source, "simulated": source == "simulator"})
    return Snapshot(header, found.contracts, Validators(f'"{at:%H%M}"', "then"))


@pytest.fixture
def service() -> DataService:
    return DataService(SnapshotStore(), lambda: NOW + timedelta(minutes=10))


async def test_a_new_snapshot_is_kept_and_told(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    found = await snapshot(closes, sessions)
    async with data_db.transaction() as tx:
        chain, quote = await service.record(found, tx)
    assert isinstance(chain, ChainCollected)
    assert isinstance(quote, QuoteTaken)
    assert chain.time == quote.time == NOW + timedelta(minutes=10)
    assert (quote.symbol, quote.as_of, quote.close, quote.simulated) == ("AAPL", NOW, found.header.close, True)
    async with data_db.read() as tx:
        last = await service.last_good("aapl", None, tx)
        assert await service.validators("simulator", tx) == {"AAPL": found.validators}
    assert last.header == found.header
    assert last.contracts.equals(found.contracts)
    assert (last.age_s, last.failures) == (600.0, 0)


async def test_the_same_or_an_older_answer_tells_nothing(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    newer, older = await snapshot(closes, sessions), await snapshot(closes, sessions, NOW - timedelta(minutes=1))
    async with data_db.transaction() as tx:
        first = await service.record(newer, tx)
        assert await service.record(newer, tx) == []
        assert await service.record(older, tx) == []
        assert (await service.last_good("AAPL", None, tx)).header.as_of == NOW
    async with data_db.transaction() as tx:
        await tx.connection.execute("truncate snapshots")  # as after a crash before the commit
        again = await service.record(newer, tx)
    assert [event.id for event in again] == [event.id for event in first]


async def test_ids_differ_by_symbol_source_time_and_kind(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    async with data_db.transaction() as tx:
        events = [
            *await service.record(await snapshot(closes, sessions), tx),
            *await service.record(await snapshot(closes, sessions, NOW + timedelta(seconds=2)), tx),
            *await service.record(await snapshot(closes, sessions, source="replay"), tx),
        ]
    assert len({event.id for event in events}) == 6


async def test_a_simulated_answer_never_overwrites_a_real_one(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    real = await snapshot(closes, sessions, NOW - timedelta(days=3), source="cboe")
    async with data_db.transaction() as tx:
        await service.record(real, tx)
        await service.record(await snapshot(closes, sessions), tx)
        assert await tx.connection.fetchval("select count(*) from snapshots") == 2
        assert await service.validators("cboe", tx) == {"AAPL": real.validators}


async def test_a_failure_is_counted_and_the_last_good_answer_stays(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    found = await snapshot(closes, sessions)
    async with data_db.transaction() as tx:
        await service.record(found, tx)
        for _ in range(2):
            await service.record_failure("AAPL", "simulator", Transient("it is down"), tx)
        last = await service.last_good("AAPL", None, tx)
        assert (last.failures, last.header) == (2, found.header)
        await service.record_unchanged("AAPL", "simulator", tx)
        assert (await service.last_good("AAPL", None, tx)).failures == 0


async def test_a_symbol_that_only_failed_has_no_answer(data_db: Database, service: DataService) -> None:
    async with data_db.transaction() as tx:
        await service.record_failure("MSFT", "cboe", Transient("it is down"), tx)
        assert await service.validators("cboe", tx) == {}
        with pytest.raises(NotFound):
            await service.last_good("MSFT", None, tx)


async def test_a_chain_is_decoded_once_and_a_newer_one_takes_its_place(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    async with data_db.transaction() as tx:
        await service.record(await snapshot(closes, sessions), tx)
        first = await service.last_good("AAPL", None, tx)
        assert (await service.last_good("AAPL", None, tx)).contracts is first.contracts
        await service.record_failure("AAPL", "simulator", Transient("it is down"), tx)
        assert (await service.last_good("AAPL", None, tx)).failures == 1
        newer = await snapshot(closes, sessions, NOW + timedelta(seconds=2))
        await service.record(newer, tx)
        assert (await service.last_good("AAPL", None, tx)).header == newer.header
        await tx.connection.execute("truncate snapshots")
        with pytest.raises(NotFound):
            await service.last_good("AAPL", None, tx)


async def test_only_the_chains_asked_for_last_stay_decoded(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    found = await snapshot(closes, sessions)
    names = [f"S{number}" for number in range(DECODED + 1)]
    async with data_db.transaction() as tx:
        for name in names:
            await service.record(replace(found, header=found.header.model_copy(update={"symbol": name})), tx)
        first = [(await service.last_good(name, None, tx)).contracts for name in names]
        again = [(await service.last_good(name, None, tx)).contracts for name in (names[-1], names[0])]
    assert [again[0] is first[-1], again[1] is first[0]] == [True, False]


async def test_one_contract_can_be_asked_for(
    data_db: Database, service: DataService, closes: dict[str, Floats], sessions: Sessions
) -> None:
    found = await snapshot(closes, sessions)
    name = found.contracts["contract"][7].as_py()
    async with data_db.transaction() as tx:
        await service.record(found, tx)
        assert (await service.last_good("AAPL", name.lower(), tx)).contracts.to_pylist() == [
            found.contracts.slice(7, 1).to_pylist()[0]
        ]
        with pytest.raises(NotFound):
            await service.last_good("AAPL", "AAPL300118C00001000", tx)
        with pytest.raises(Invalid):
            await service.last_good("AAPL", "nonsense", tx)
        with pytest.raises(Invalid):
            await service.last_good("../AAPL", None, tx)


async def test_quotes_are_told_with_stable_ids(data_db: Database, service: DataService) -> None:
    quote = Quote("AAPL", NOW, "simulator", simulated=True, close=10.0, bid=9.99, ask=10.01)
    async with data_db.transaction() as tx:
        (first,), (again,) = await service.record_quotes([quote], tx), await service.record_quotes([quote], tx)
    assert first == again
