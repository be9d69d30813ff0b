"""Postgres restored from a backup that is older than Kafka: what docs/runbooks/restored-postgres.md says happens.

The backup is a real pg_dump, taken while the consumer works.
"""

import asyncio
import uuid
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from deploy.local import postgres as local_postgres
from shared.contracts.base import Event
from shared.db import Database, Tx
from shared.errors import Permanent
from shared.messaging.door import Done, Door
from shared.messaging.outbox import Outbox
from shared.messaging.replay import Range
from tests.conftest import eventually
from tests.messaging.harness import Deposited, Probe, record_effect
from tests.messaging.test_ops_positions import Reader, positions, working

Restore = Callable[[Path], Awaitable[None]]
EVENTS = 400
KEYS = 8


@pytest.fixture
async def restore(postgres: str, probe: Probe) -> AsyncGenerator[Restore]:
    """Restore a dump into a database of its own, which the probe's service uses from then on."""
    admin = await asyncpg.connect(postgres)
    name = f"restored_{uuid.uuid4().hex[:12]}"
    server = postgres.rpartition("/")[0]

    async def restore(dump: Path) -> None:
        await admin.execute(f"create database {name}")
        await _run("pg_restore", "--exit-on-error", "-d", f"{server}/{name}", str(dump))
        await probe.db.close()
        probe.url = f"{probe.url.rpartition('/')[0]}/{name}"
        probe.db = Database(probe.url, schema="probe", size=4)

    yield restore
    for replica in probe.replicas:
        await replica.stop()
    await probe.db.close()
    await admin.execute(f"drop database if exists {name} with (force)")
    await admin.close()


async def _run(tool: str, *words: str) -> None:
    done = await asyncio.create_subprocess_exec(
        str(local_postgres._binaries(None) / tool), *words, stderr=asyncio.subprocess.PIPE
    )
    _, said = await done.communicate()
    assert done.returncode == 0, said.decode()


async def _tell(probe: Probe, account: str, n: int) -> None:
    """A fact that came by HTTP: an event in the outbox, nothing in Kafka before."""

    async def use_case(tx: Tx) -> Done[None]:
        return Done(None, [probe.make(account, n)])

    await Door(probe.db, Outbox("probe", lambda: None)).run(use_case)


async def _life_with_a_backup(probe: Probe, dump: Path) -> None:
    """Consume, and take a backup on the way; afterwards everything has taken effect, more than the backup knows."""
    mended = False

    async def refuse_f(event: Deposited, tx: Tx) -> list[Event]:
        if event.account == "f" and not mended:
            raise Permanent("not f")
        return await record_effect(event, tx)

    await probe.send(probe.make("f", 0))
    first = probe.start(refuse_f)
    await eventually(lambda: _dead(probe))
    first.tasks[0].cancel()  # the relay: what is told now stays in the outbox, and in the backup
    await asyncio.gather(first.tasks[0], return_exceptions=True)
    await _tell(probe, "before", 1)

    async def produce() -> None:
        for number in range(EVENTS):
            await probe.send(probe.make(f"k{number % KEYS}", number))

    producing = asyncio.create_task(produce())
    await eventually(lambda: _effects(probe, EVENTS // 8))
    await _run("pg_dump", "-Fc", "-f", str(dump), "-d", probe.url)
    await producing
    second = probe.start(refuse_f, member="second")  # its relay sends what waited
    await _tell(probe, "after", 1)
    mended = True
    (job,) = await probe.jobs("dead")
    await probe.act(lambda tx: probe.failed_jobs.retry(tx, job["id"], "me"))
    await eventually(lambda: _effects(probe, EVENTS + 3))
    await first.stop()
    await second.stop()


@pytest.mark.apache  # the restored replica joins beside the old one, which static members of the embedded broker cannot
async def test_consumers_read_again_from_the_backups_own_offsets_and_nothing_happens_twice(
    probe: Probe, restore: Restore, tmp_path: Path
) -> None:
    await _life_with_a_backup(probe, tmp_path / "backup")
    await restore(tmp_path / "backup")
    known = len(await probe.effects())
    assert EVENTS // 8 <= known < EVENTS, "the backup fell into the middle"

    seen = await Reader(probe).replay.run(Range(""), dry_run=True)  # make replay ... --dry-run
    assert seen["run"] == 0
    assert seen["read"] > 0
    assert seen["read"] + seen["ahead"] == EVENTS + 3
    probe.start(record_effect)  # what `openbell lag` then shows
    await eventually(lambda: _caught_up(probe))
    await eventually(lambda: _effects(probe, EVENTS + 2))
    reader = Reader(probe)
    async with working(reader.runs):  # openbell replay ... --dry-run, of running services
        told = await reader.ends(await reader.start(dry_run=True))
        assert told["counts"]["run"] == 0
        assert told["counts"]["read"] == EVENTS + 4, "Kafka has the outbox's event twice"
    (again,) = await probe.jobs("dead")  # its retry came after the backup: it is open again, and so is its effect
    await probe.act(lambda tx: probe.failed_jobs.retry(tx, again["id"], "me"))
    await eventually(lambda: _effects(probe, EVENTS + 3))
    await _everything_once_and_in_order(probe)


@pytest.mark.apache
async def test_offsets_newer_than_the_state_are_mended_by_a_replay_of_what_is_missing(
    probe: Probe, restore: Restore, tmp_path: Path
) -> None:
    """As when one schema is restored and `consumer_offsets` is not: live reading skips, and says nothing.

    The offsets are those of a moment between the backup and the end, so the consumer has something left to read after
    the replay. Nothing runs while it is replayed, as the page says.
    """
    await _life_with_a_backup(probe, tmp_path / "backup")
    await restore(tmp_path / "backup")
    known = len(await probe.effects())
    rows = await positions(probe).lag()
    places = {row["partition"]: ((row["settled_offset"] or 0) + row["end_offset"]) // 2 for row in rows}
    async with probe.db.transaction() as tx:
        for partition, place in places.items():
            await tx.execute(
                text("update consumer_offsets set next_offset = :place where partition = :partition"),
                place=place,
                partition=partition,
            )

    replay = Reader(probe).replay  # make replay
    missing = await replay.run(Range(""), dry_run=True)
    assert 0 < missing["run"] < EVENTS + 2 - known, "the consumer has something left to read"
    assert missing["read"] == sum(places.values())
    assert len(await probe.effects()) == known, "a dry run changes nothing"
    assert (await replay.run(Range("")))["run"] == missing["run"]
    assert len(await probe.effects()) == known + missing["run"]
    assert (await replay.run(Range(""), dry_run=True))["run"] == 0
    (dead,) = await probe.jobs("dead")
    await probe.act(lambda tx: probe.failed_jobs.retry(tx, dead["id"], "me"))
    probe.start(record_effect)
    await eventually(lambda: _effects(probe, EVENTS + 3))
    await _everything_once_and_in_order(probe)


async def _everything_once_and_in_order(probe: Probe) -> None:
    async with probe.db.read() as tx:
        rows = await tx.fetch(text("select account, n from effects order by id"))
    order: defaultdict[str, list[int]] = defaultdict(list)
    for row in rows:
        order[row["account"]].append(row["n"])
    expected = {f"k{key}": list(range(key, EVENTS, KEYS)) for key in range(KEYS)}
    assert dict(order) == expected | {"f": [0], "before": [1], "after": [1]}


async def _effects(probe: Probe, count: int) -> bool:
    return len(await probe.effects()) >= count


async def _dead(probe: Probe) -> bool:
    return len(await probe.jobs("dead")) == 1


async def _caught_up(probe: Probe) -> bool:
    return all(row["lag_records"] == 0 for row in await positions(probe).lag())
