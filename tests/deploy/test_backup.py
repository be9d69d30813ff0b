"""The drill: a cluster with orders and money is lost, comes back, and what must hold is looked at.

The way is that of `make backup` and `make restore`: Postgres' own programs, WAL to a moment, a fresh place, broken
files. What happens with Kafka afterwards is tests/messaging/test_restore.py.
"""

import asyncio
import gzip
import shutil
from collections.abc import Awaitable, Callable, Generator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.invariants import examine
from deploy.local import postgres
from deploy.local.backup import BackupError, take
from deploy.local.processes import ServerError
from deploy.local.restore import bring_back
from deploy.local.stack import DATABASE
from services.payment.domain.ledger import of_hand
from services.payment.domain.money import Money
from services.payment.store.ledger import LedgerStore
from shared import migrate
from shared.db import Database
from tests.broker.brokerage import opened

BEGAN = datetime(2020, 1, 1, tzinfo=UTC)  # what backups are named by; before all that is written

_OUTBOX = "insert into broker.outbox (id, topic, headers) overriding system value values (1, 'broker.orders', '')"
_WAITING = """
    insert into broker.failed_jobs (consumer, topic, partition, record_offset, headers, status, event_id, record_time)
    values ('broker.orders', 'broker.orders', 0, 1, '', 'waiting', uuidv7(), now())"""


class Place:
    """Where a cluster and its backups lie."""

    def __init__(self, home: Path, backups: Path) -> None:
        self.home, self.backups = home, backups
        self.taken = 0

    def back_up(self) -> Path:
        self.taken += 1
        return take(self.home, self.backups, BEGAN + timedelta(seconds=self.taken))

    def restore(self, at: datetime | None = None) -> str:
        return bring_back(self.home, self.backups, at, datetime.now(UTC))

    def ask(self, *acts: Callable[[str], Awaitable[Any]]) -> list[Any]:
        """Start the cluster, do this and that with its database, stop it."""
        with postgres.start(self.home / "postgres") as server:
            url = f"{server.dsn.rpartition('/')[0]}/{DATABASE}"
            return [asyncio.run(_run(act, url)) for act in acts]


async def _run(act: Callable[[str], Awaitable[Any]], url: str) -> Any:
    return await act(url)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Generator[Place]:
    """A cluster with every schema, an order that was filled, and money in the ledger."""
    folder = tmp_path_factory.mktemp("made")
    found = Place(folder / "home", folder / "backups")
    found.home.mkdir()
    with postgres.start(found.home / "postgres") as server:
        asyncio.run(_database(server.dsn))
    found.ask(migrate.upgrade_all, _trade, _receive("first"))
    yield found
    postgres.remove(found.home / "postgres")


@pytest.fixture
def place(made: Place, tmp_path: Path) -> Generator[Place]:
    """The same in a place of its own."""
    found = Place(tmp_path / "home", tmp_path / "backups")
    (found.home / "postgres").mkdir(parents=True)
    data = postgres.place(found.home / "postgres")
    shutil.copytree(postgres.place(made.home / "postgres"), data, dirs_exist_ok=True)
    postgres.hand_over(data)
    yield found
    for folder in tmp_path.glob("*/postgres*"):
        postgres.remove(folder)


@pytest.fixture(scope="module")
def backups(made: Place) -> Path:
    """A backup, and the WAL of three receipts after it, a file each."""
    made.back_up()
    for number in range(3):
        made.ask(_receive(f"more {number}"))
        shutil.rmtree(made.back_up())
    return made.backups


async def _database(dsn: str) -> None:
    admin = await asyncpg.connect(dsn)
    await admin.execute(f"create database {DATABASE}")
    await admin.close()


async def _trade(url: str) -> None:
    async with opened(url) as brokerage:
        account = await brokerage.account()
        for quantity, price in (("5", 100), ("3", 99)):
            order = await brokerage.place(account, quantity=quantity)
            await brokerage.desk(account).fill(order, Decimal(quantity), Decimal(price))
        await brokerage.reconcile(account)
        (row,) = await brokerage.rows("select quantity from positions")
        assert row["quantity"] == 8


def _receive(key: str) -> Callable[[str], Awaitable[datetime]]:
    """Book money; answers when that was."""

    async def act(url: str) -> datetime:
        db = Database(url, schema="payment", size=2)
        entry = of_hand(f"hand/{key}", Money(2900, "USD", 2), at=BEGAN, about=key)
        async with db.transaction() as tx:
            assert await LedgerStore().add(tx, entry, BEGAN)
        await db.close()
        return await _value(url, "select clock_timestamp()")

    return act


async def _lose(url: str) -> None:
    """Do what nobody should: throw away the orders."""
    admin = await asyncpg.connect(url)
    await admin.execute("truncate broker.orders cascade")
    await admin.close()


async def _value(url: str, query: str) -> Any:
    admin = await asyncpg.connect(url)
    try:
        return await admin.fetchval(query)
    finally:
        await admin.close()


def _entries(place: Place) -> int:
    found: list[int] = place.ask(lambda url: _value(url, "select count(*) from payment.ledger_entries"))
    return found[0]


def _files(place: Place) -> dict[str, int]:
    """Return what lies in a place and when it was last written, without the lock that each command takes."""
    folders = (place.home, postgres.place(place.home / "postgres"))
    found = {file for folder in folders for file in folder.rglob("*") if file.name not in {"lock", "postgres"}}
    return {str(file): file.stat().st_mtime_ns for file in found}


def test_a_moment_between_a_backup_and_a_mistake_comes_back_and_everything_holds(place: Place):
    place.back_up()
    moment, before = place.ask(_receive("second"), examine)
    place.ask(_receive("third"), _lose)

    told = place.restore(moment)
    assert "ledger    2 entries, 0 currencies off" in told
    assert "positions 1 from 2 facts, 0 off" in told
    (after,) = place.ask(examine)
    assert after.broken == []
    assert after.rows == before.rows
    assert after.rows["broker.orders"] == 2


def test_a_lost_machine_comes_back_in_a_fresh_place_as_of_its_last_backup(place: Place, tmp_path: Path):
    place.back_up()
    place.ask(_receive("second"))
    (before,) = place.ask(examine)
    place.back_up()
    place.ask(_receive("lost with the machine"))
    postgres.remove(place.home / "postgres")
    shutil.rmtree(place.backups / "base-20200101T000002Z")  # the older one and the WAL after it will do

    fresh = Place(tmp_path / "another", place.backups)
    fresh.restore()
    (after,) = fresh.ask(examine)
    assert after.broken == []
    assert after.rows == before.rows


def test_a_backup_is_taken_while_the_server_runs(place: Place):
    with postgres.start(place.home / "postgres") as server:
        place.back_up()
        url = f"{server.dsn.rpartition('/')[0]}/{DATABASE}"
        asyncio.run(_run(_receive("second"), url))
        with pytest.raises(ServerError, match="in use"):
            place.restore()
        server.kill()  # what was committed is on the disk
    assert "ledger    2 entries" in place.restore()


def test_the_database_before_is_kept_and_the_next_backup_follows_from_what_came_back(place: Place):
    place.back_up()
    moment, _ = place.ask(_receive("second"), _receive("third"))
    place.restore(moment)
    (aside,) = place.home.glob("postgres.before-*")
    assert _entries(place) == 2
    place.back_up()
    place.ask(_receive("fourth"))
    assert "ledger    3 entries" in place.restore()
    aside.rename(place.home / "postgres.aside")
    shutil.move(place.home / "postgres", place.home / "postgres.gone")
    (place.home / "postgres.aside").rename(place.home / "postgres")
    assert _entries(place) == 3


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _table(base: Path) -> Path:
    """Return a file of the backup that holds a table's rows."""
    return max((base / "base").glob("*/[0-9]*"), key=lambda file: file.stat().st_size)


def _middle(base: Path) -> Path:
    """Return a WAL file between the backup and the last one."""
    files = sorted(file for file in (base.parent / "wal").glob("*.gz") if len(file.stem) == 24)
    return files[-2]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        pytest.param(lambda base: _flip(_table(base)), "checksum mismatch", id="a byte of a table"),
        pytest.param(lambda base: _table(base).unlink(), "is present in the manifest but not on disk", id="a table"),
        pytest.param(lambda base: _cut(base / "backup_manifest"), "pg_verifybackup", id="half a manifest"),
        pytest.param(lambda base: (base / "backup_manifest").unlink(), "it has no backup_manifest", id="no manifest"),
        pytest.param(lambda base: _cut(_middle(base)), "is broken", id="half a file of WAL"),
        pytest.param(lambda base: _flip(_middle(base)), "is broken", id="a byte of WAL"),
        pytest.param(lambda base: _middle(base).unlink(), "WAL is missing", id="a file of WAL"),
        pytest.param(
            lambda base: _middle(base).write_bytes(gzip.compress(b"short")), "it holds 5 bytes", id="other WAL"
        ),
        pytest.param(lambda base: shutil.rmtree(base.parent), "there is no backup", id="everything"),
    ],
)
def test_a_broken_or_missing_file_is_named_and_nothing_is_touched(
    backups: Path, tmp_path: Path, harm: Callable[[Path], object], said: str
):
    copy = Place(tmp_path / "home", tmp_path / "backups")
    shutil.copytree(backups, copy.backups)
    there = copy.home / "postgres" / "data" / "PG_VERSION"
    there.parent.mkdir(parents=True)
    there.write_text("18")
    (base,) = copy.backups.glob("base-*")
    harm(base)
    before = _files(copy)
    with pytest.raises(BackupError, match=said):
        copy.restore()
    assert _files(copy) == before


def test_a_moment_that_was_not_kept_is_refused(place: Place):
    place.back_up()
    before = _files(place)
    with pytest.raises(BackupError, match="is from before"):
        place.restore(BEGAN)
    with pytest.raises(BackupError, match="recovery ended before configured recovery target was reached"):
        place.restore(datetime.now(UTC) + timedelta(days=1))
    assert _files(place) == before


def test_there_is_nothing_to_back_up_where_nothing_ran(tmp_path: Path):
    with pytest.raises(BackupError, match="there is no database"):
        take(tmp_path / "home", tmp_path / "backups", BEGAN)
    assert not (tmp_path / "backups").exists()


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (
            [
                "alter table payment.ledger_postings disable trigger all",
                "delete from payment.ledger_postings where line = 1",
            ],
            "the ledger is off by",
        ),
        (["update broker.positions set quantity = 9"], "its fills and other facts make 8"),
        (["delete from broker.facts where id = (select min(id) from broker.facts)"], "its fills and other facts make"),
        (["delete from broker.positions"], "have no position"),
        (
            [_OUTBOX, "select setval(pg_get_serial_sequence('broker.outbox', 'id'), 1, false)"],
            "the next one given is 1",
        ),
        ([_WAITING], "the inbox does not know 1 events"),
        (["update alerts.alembic_version set version_num = '9999'"], "this code knows"),
        (["drop schema detector cascade"], "detector: there is no such schema"),
        (["update pg_index set indisvalid = false where indexrelid = 'broker.orders_pkey'::regclass"], "orders_pkey"),
    ],
)
async def test_what_does_not_hold_is_found(database_url: str, statements: list[str], said: str):
    await _trade(database_url)
    await _receive("first")(database_url)
    assert (await examine(database_url)).broken == []
    admin = await asyncpg.connect(database_url)
    for statement in statements:
        await admin.execute(statement)
    await admin.close()
    assert said in "\n".join((await examine(database_url)).broken)
