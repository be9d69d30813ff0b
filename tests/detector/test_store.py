from dataclasses import replace
from datetime import timedelta

import numpy as np
import pyarrow as pa

from services.detector.domain.snapshots import Snapshot
from services.detector.store import DetectorStore
from tests.detector.chains import AS_OF, SESSION

NEW = Snapshot(SESSION, AS_OF, pa.array(["AAPL260821C00110000", "AAPL260821P00090000"]), np.array([7, 2**40]))
NONE = Snapshot(SESSION, AS_OF, pa.array([], pa.string()), np.array([], dtype=np.int64))


async def test_a_snapshot_reads_back_as_it_was_kept(open_database):
    store, db = DetectorStore(), open_database("detector")
    async with db.transaction() as tx:
        await store.keep_snapshots(tx, {"AAPL": NEW, "MSFT": NONE})
        known = await store.snapshots(tx, ["MSFT", "AAPL", "AAPL", "SPY"])
    assert known.keys() == {"AAPL", "MSFT"}
    assert known["AAPL"].contracts.equals(NEW.contracts)
    assert known["AAPL"].volume.tolist() == [7, 2**40]
    assert (known["MSFT"].as_of, len(known["MSFT"].contracts), len(known["MSFT"].volume)) == (AS_OF, 0, 0)


async def test_a_late_writer_does_not_replace_a_newer_snapshot(open_database):
    store, db = DetectorStore(), open_database("detector")
    late = [replace(NEW, as_of=AS_OF - timedelta(minutes=1)), replace(NEW, session=SESSION - timedelta(days=1))]
    async with db.transaction() as tx:
        await store.keep_snapshots(tx, {"AAPL": NEW})
        for each in late:
            await store.keep_snapshots(tx, {"AAPL": each})
            known = (await store.snapshots(tx, ["AAPL"]))["AAPL"]
            assert (known.session, known.as_of) == (SESSION, AS_OF)
