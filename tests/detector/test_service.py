"""The detector over a real Postgres: handlers, the leaderboard, and what is read back."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from itertools import count
from uuid import UUID

import pytest
from sqlalchemy import text

from services.detector.service import BoardRules, Detector
from services.detector.store import DetectorStore
from shared.contracts.data import ChainCollected
from shared.contracts.detector import ActivityDetected, LeaderboardChanged
from shared.db import Database, Row
from shared.errors import Invalid, NotFound
from tests.detector.chains import AS_OF, SESSION, collected, header, occ, row

STRIKES = count(50)


def detector(**board) -> Detector:
    ids = count(1)
    return Detector(DetectorStore(), clock=lambda: AS_OF, new_id=lambda: UUID(int=next(ids)), board=BoardRules(**board))


@pytest.fixture
def db(open_database: Callable[[str], Database]) -> Database:
    return open_database("detector")


async def scan(db: Database, *events: ChainCollected, by: Detector | None = None) -> list[ActivityDetected]:
    async with db.transaction() as tx:
        return [each for each in await (by or detector()).detect(events, tx) if isinstance(each, ActivityDetected)]


async def refresh(db: Database, by: Detector | None = None) -> list[LeaderboardChanged]:
    async with db.transaction() as tx:
        told = await (by or detector()).refresh_board(tx)
        return [each for each in told if isinstance(each, LeaderboardChanged)]


async def activity(db: Database, symbol="AAPL", session=None):
    async with db.read() as tx:
        return await detector().activity(symbol, session, 100, tx)


async def board(db: Database, session=None, at=None) -> Row:
    async with db.read() as tx:
        found = await detector().board(session, at, tx)
    assert found is not None
    return found


def named(symbol: str, volume: float = 2_000, **fields):
    strike = float(next(STRIKES))
    return row(strike=strike, volume=volume, contract=occ(symbol, strike=strike), **fields)


async def test_what_is_unusual_is_told_and_stored(db):
    event = collected(header(simulated=True), [row(), row(strike=120.0, volume=3.0)])
    (told,) = await scan(db, event)
    assert (told.symbol, told.session, told.as_of, told.key) == ("AAPL", SESSION, AS_OF, "AAPL")
    assert (told.simulated, told.delay_s, told.underlying_usd) == (True, 900.0, Decimal("100.0"))
    assert told.time == event.time
    (contract,) = told.contracts
    (stored,) = await activity(db)
    assert stored["detail"] == contract.model_dump(mode="json")
    assert (stored["simulated"], stored["best_score"], stored["as_of"]) == (True, contract.score, AS_OF)


async def test_a_chain_without_anything_unusual_says_nothing(db):
    assert await scan(db, collected(header(), []), collected(header("MSFT"), [row(volume=1.0)])) == []


async def test_a_re_run_derives_the_same_facts(db):
    event = collected(header(), [row()])
    async with db.transaction() as tx:
        first = await detector().detect([event], tx)
        await tx.execute(text("truncate snapshots, activity, scans, candidates"))
    async with db.transaction() as tx:
        assert await detector().detect([event], tx) == first


async def test_many_contracts_of_one_chain_are_told_in_several_events(db):
    rows = [row(strike=50.0 + number, volume=1_000.0 + number) for number in range(501)]
    told = await scan(db, collected(header(), rows))
    assert [len(each.contracts) for each in told] == [500, 1]
    assert len({each.id for each in told}) == 2
    scores = [contract.score for each in told for contract in each.contracts]
    assert scores == sorted(scores, reverse=True)


async def test_the_change_is_since_the_last_snapshot_across_batches(db):
    await scan(db, collected(header(), [row(volume=2_000.0)]))
    (told,) = await scan(db, collected(header(minute=1), [row(volume=2_250.0)]))
    assert told.contracts[0].volume_change == 250


async def test_a_late_snapshot_is_stored_without_moving_anything_backwards(db):
    late_only = row(strike=130.0)
    await scan(db, collected(header(minute=5), [row(volume=9_000.0)]))
    await scan(db, collected(header(minute=1), [row(volume=2_000.0), late_only]))
    stored = {each["detail"]["contract"]: each for each in await activity(db)}
    assert stored[row()["contract"]]["detail"]["volume"] == 9_000
    assert stored[row()["contract"]]["first_as_of"] == header(minute=1).as_of
    assert stored[late_only["contract"]]["as_of"] == header(minute=1).as_of
    (told,) = await scan(db, collected(header(minute=6), [row(volume=9_100.0)]))
    assert told.contracts[0].volume_change == 100


async def test_one_contract_in_several_snapshots_of_a_batch_is_one_row_at_its_newest(db):
    events = [collected(header(minute=minute), [row(volume=2_000.0 + minute)]) for minute in (0, 2, 1)]
    told = await scan(db, *events)
    (stored,) = await activity(db)
    assert stored["detail"]["volume"] == 2_002
    assert stored["best_score"] == max(each.contracts[0].score for each in told)


async def test_an_unusable_header_is_refused_with_the_reason(db):
    with pytest.raises(Invalid, match="not a ticker"):
        await scan(db, collected(header("A B"), [row()]))


async def test_faulty_rows_are_logged_once_a_snapshot_and_after_the_commit(db, caplog):
    caplog.set_level(logging.WARNING, "openbell.detector")
    broken = [row(strike=120.0, last=float("nan")), row(strike=130.0, volume=-1.0), row(bid=9.0)]
    async with db.transaction() as tx:
        await detector().detect([collected(header(), broken)], tx)
        assert caplog.records == []
    (record,) = caplog.records
    assert record.__dict__["reasons"] == {"nan_last": 1, "negative_volume": 1, "crossed_quote": 1}


async def test_lanes_do_not_wait_for_each_other(db):
    async with db.transaction() as one, db.transaction() as other:
        await detector().detect([collected(header("AAA"), [named("AAA")])], one)
        await asyncio.wait_for(detector().detect([collected(header("BBB"), [named("BBB")])], other), timeout=5)


async def test_the_board_holds_the_best_of_each_minute(db):
    rows = [named("AAPL", 1_000.0 + 100 * number) for number in range(8)]
    await scan(db, collected(header(), rows))
    (told,) = await refresh(db)
    assert (told.symbols_scanned, len(told.entries)) == (1, 5)
    assert (told.session, told.as_of) == (SESSION, AS_OF.replace(second=0) + timedelta(minutes=1))
    assert [each.rank for each in told.entries] == [1, 2, 3, 4, 5]
    assert {each.contract for each in told.entries} == {each["contract"] for each in rows[3:]}
    stored = await board(db)
    assert stored["entries"] == [each.model_dump(mode="json") for each in told.entries]


async def test_a_board_that_stays_the_same_is_not_told_again(db):
    await scan(db, collected(header(), [row()]))
    assert len(await refresh(db)) == 1
    assert await refresh(db) == []
    await scan(db, collected(header(minute=1), []))
    assert await refresh(db) == []
    assert (await board(db))["minute"] == header(minute=1).as_of.replace(second=0) + timedelta(minutes=1)


async def test_places_of_a_minute_grow_with_the_symbols_scanned(db):
    rules = {"least": 1, "share": 0.5}
    events = [collected(header(f"S{number}"), [named(f"S{number}", 1_000.0 + number)]) for number in range(4)]
    await scan(db, events[0], events[1])
    (told,) = await refresh(db, detector(**rules))
    assert (told.symbols_scanned, len(told.entries)) == (2, 1)
    await scan(db, events[2])
    await scan(db, events[3])
    (told,) = await refresh(db, detector(**rules))
    assert (told.symbols_scanned, [each.symbol for each in told.entries]) == (4, ["S3", "S2"])


async def test_the_history_keeps_a_board_for_each_minute(db):
    weak, strong = named("AAPL", 1_000.0), named("AAPL", 50_000.0)
    await scan(db, collected(header(), [weak]))
    await refresh(db)
    await scan(db, collected(header(minute=1), [weak, strong]))
    await refresh(db)
    async with db.read() as tx:
        history = await detector().history(None, 10, tx)
    assert [each["places"] for each in history] == [2, 1]
    assert history[0]["best_contract"] == strong["contract"]
    earlier = await board(db, at=history[1]["minute"])
    assert [each["contract"] for each in earlier["entries"]] == [weak["contract"]]
    assert len((await board(db, session=SESSION))["entries"]) == 2


async def boards(db: Database) -> list[tuple[object, ...]]:
    async with db.read() as tx:
        rows = await tx.fetch(text("select minute, symbols_scanned, entries from boards order by minute"))
    return [tuple(each) for each in rows]


async def test_the_board_is_the_same_in_whatever_order_minutes_and_batches_arrive(db):
    rules = {"least": 1, "share": 0.4, "size": 4}
    events = [
        collected(header(f"S{symbol}", minute=minute), [named(f"S{symbol}", 700.0 * (1 + (symbol * 7 + minute) % 5))])
        for minute in range(4)
        for symbol in range(5)
    ]
    seen: list[list[tuple[object, ...]]] = []
    orders: Sequence[list[ChainCollected]] = (events, events[::-1], events[1::2] + events[::2])
    for order in orders:
        for start in range(0, len(order), 3):
            await scan(db, *order[start : start + 3], by=detector(**rules))
            await refresh(db, detector(**rules))
        seen.append(await boards(db))
        async with db.transaction() as tx:
            await tx.execute(text("truncate snapshots, activity, scans, candidates, boards"))
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 4


async def test_candidates_beyond_the_places_of_the_board_are_forgotten_after_their_minute(db):
    rules = {"size": 2}
    for minute in range(3):
        for symbol in ("AAA", "BBB"):
            await scan(
                db, collected(header(symbol, minute=minute), [named(symbol), named(symbol)]), by=detector(**rules)
            )
        await refresh(db, detector(**rules))
    async with db.read() as tx:
        kept = await tx.fetch(text("select count(*) from candidates group by minute order by minute"))
    assert [each["count"] for each in kept] == [2, 2, 4]


async def test_only_one_replica_makes_the_board_at_a_time(db):
    await scan(db, collected(header(), [row()]))
    async with db.transaction() as first, db.transaction() as second:
        assert len(await detector().refresh_board(first)) == 1
        assert await detector().refresh_board(second) == []


async def test_before_the_first_scan_there_is_no_board_and_an_unknown_one_is_not_found(db):
    async with db.read() as tx:
        assert await detector().board(None, None, tx) is None
    for question in ({"session": SESSION}, {"at": AS_OF}):
        with pytest.raises(NotFound):
            await board(db, **question)


async def test_old_sessions_are_dropped(db):
    old, new = SESSION - timedelta(days=200), SESSION
    for session in (old, new):
        await scan(db, collected(header(session=session), [row()]))
    await refresh(db)
    await detector().drop_old(SESSION, db.transaction)
    async with db.read() as tx:
        for table in ("activity", "boards", "candidates", "scans", "snapshots"):
            rows = await tx.fetch(text(f"select distinct session from {table}"))
            assert [each["session"] for each in rows] == [new], table
