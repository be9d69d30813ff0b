"""The run: start everything, send, break, mend, wait until all is settled, compare."""

import asyncio
import contextlib
import logging
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from shared.clock import utc_now
from shared.contracts.topics import dead_letter_topic
from shared.db import Database
from shared.messaging import inbox
from shared.messaging.kafka import KafkaAddress, ensure_topics
from tests.chaos.ledger import book, faults
from tests.chaos.ledger.events import CREDIT_CONSUMER, CREDITS, DEBIT_CONSUMER, TRANSFERS, Source
from tests.chaos.ledger.monitor import Monitor
from tests.chaos.ledger.producer import Steady
from tests.chaos.ledger.report import Asked, Outcome
from tests.chaos.ledger.servers import Kafka, Keeper, Postgres, Replica, role_of, settings_of
from tests.chaos.ledger.verify import Findings, read_log, verify
from tests.chaos.proxy import Proxy

_log = logging.getLogger(__name__)
LIMIT_S = 600.0
"""For a whole run, start and comparison included."""

_OPEN = """
    select (select count(*) from ledger.outbox) as outbox,
           (select count(*) from ledger.failed_jobs where status in ('waiting', 'held')) as waiting,
           (select count(*) from ledger.payouts where status in ('pending', 'claimed', 'started')) as payouts
"""
_OFFSETS = "select consumer, topic, partition, next_offset from ledger.consumer_offsets"
_SESSIONS = (
    "select pid, state, wait_event_type, wait_event, xact_start, left(query, 200) as query from pg_stat_activity"
)


@dataclass(frozen=True, slots=True)
class Options:
    """What to do. `chaos_s` is the time in which events are sent and faults happen; `settle_s` what may follow."""

    seed: int
    events: int
    kills: int
    chaos_s: float
    settle_s: float
    replicas: int = 3
    only: tuple[str, ...] = ()

    @property
    def asked(self) -> Asked:
        """The bars."""
        return Asked(self.seed, self.events, self.kills, LIMIT_S)


@dataclass
class Stage:
    """Everything that runs."""

    postgres: Postgres
    kafka: Kafka
    replicas: list[Replica]
    extra: Replica
    sink: book.Sink
    folder: Path


async def run(options: Options) -> Outcome:
    """Do it all. The folder with the logs is the caller's to remove."""
    begun = time.monotonic()
    folder = _folder(options)
    print(f"seed {options.seed}; logs of all processes: {folder}", flush=True)  # noqa: T201 - a command line tool
    async with _stage(options, folder) as stage:
        source = Source(options.seed)
        steady = Steady(stage.kafka.direct, source, options.events, options.events / (options.chaos_s * 0.95))
        monitor = Monitor(lambda: stage.postgres.admin_url, steady.sent)
        world = faults.World(stage.postgres, stage.kafka, stage.replicas, stage.extra, monitor)
        watching = asyncio.create_task(monitor.run())
        sending = asyncio.create_task(steady.run())
        try:
            plan = faults.plan(options.seed, options.kills, options.chaos_s - 3, options.only)
            await asyncio.sleep(3)  # so that faults strike what works
            await faults.execute(world, plan)
            mended = time.monotonic()
            problem = await _settle(stage, sending, options.settle_s)
            settled_s = time.monotonic() - mended
        finally:
            for task in (watching, sending):
                task.cancel()
            await asyncio.gather(watching, sending, return_exceptions=True)
        hung = [one.name for one in [*stage.replicas, stage.extra] if one.runs and not await one.stop()]
        found = await verify(stage.postgres.admin_url, stage.kafka.direct, steady.sent, stage.sink)
        if problem:
            found.blame("stall", problem)
        for name in hung:
            found.blame("stall", f"{name} did not stop within 20 s of SIGTERM")
        if len(steady.sent.acknowledged) < options.events:
            found.blame("stall", f"only {len(steady.sent.acknowledged)} events were acknowledged")
        if found.violations:
            await _keep_tables(stage, found)
        took_s = time.monotonic() - begun
        return Outcome(
            options.asked,
            found,
            monitor.seen,
            world.kills,
            world.done,
            world.mid_transaction,
            steady.sent.renewals,
            took_s,
            settled_s,
            folder,
        )


def _folder(options: Options) -> Path:
    folder = Path(tempfile.mkdtemp(prefix=f"openbell-chaos-{options.seed}-"))
    folder.chmod(0o711)  # Postgres started by root runs as nobody and must pass through
    return folder


@asynccontextmanager
async def _stage(options: Options, folder: Path) -> AsyncGenerator[Stage]:
    """Start Postgres, Kafka, topics and replicas; end all of them and delete their data, not their logs."""
    keeper = Keeper()
    chance = Random(f"{options.seed}/proxies")
    postgres = Postgres(folder, keeper)
    kafka = Kafka(folder, keeper, chance)
    sink = book.Sink()
    places: list[Replica] = []
    try:
        await asyncio.gather(postgres.start(), sink.start())
        await kafka.start()
        await book.make_schema(postgres.admin_url)
        url = postgres.admin_url.replace("//postgres@", f"//{role_of()}@")
        database = Database(url, schema=book.SERVICE, size=2)
        async with database.transaction() as tx:
            await inbox.roll(tx, utc_now())
        await database.close()
        letters = [dead_letter_topic(name) for name in (DEBIT_CONSUMER, CREDIT_CONSUMER)]
        await ensure_topics(KafkaAddress(kafka.direct), [TRANSFERS, CREDITS, *letters])
        env = settings_of(kafka, sink.address)
        for number in range(options.replicas + 1):
            proxy = Proxy(postgres.running.port, chance)
            places.append(Replica(f"replica{number}", folder, keeper, proxy, env))
        for place in places[1:]:
            await place.start()
        await asyncio.gather(*(place.started() for place in places[1:]))
        yield Stage(postgres, kafka, places[1:], places[0], sink, folder)
    finally:
        for place in places:
            await place.kill()
            await place.proxy.stop()
        await kafka.stop()
        await postgres.stop()
        await sink.stop()
        keeper.close()
        shutil.rmtree(folder / "kafka" / "data", ignore_errors=True)


async def _settle(stage: Stage, sending: asyncio.Task[None], within_s: float) -> str:
    """Wait until all is sent and settled; return what is not, "" when all is."""
    deadline = time.monotonic() + within_s
    still = "nothing was asked"
    try:
        async with asyncio.timeout(within_s):
            await asyncio.shield(sending)
    except TimeoutError:
        still = "the driver's own producer did not get rid of its events"
        deadline = 0
    ends: dict[tuple[str, int], int] = {}
    quiet = 0
    while time.monotonic() < deadline:
        if quiet == 0:
            ends = await _ends(stage)
        still = await _open_work(stage, ends)
        quiet = quiet + 1 if not still else 0
        if quiet == 3:  # what is relayed meanwhile would move the ends
            return ""
        if not still:
            quiet = quiet if ends == await _ends(stage) else 0
        await asyncio.sleep(0.3)
    await _snapshot(stage, still)
    return f"not settled {within_s:.0f} s after the last fault: {still}"


async def _ends(stage: Stage) -> dict[tuple[str, int], int]:
    consumer = AIOKafkaConsumer(bootstrap_servers=stage.kafka.direct)
    await consumer.start()
    try:
        parts = [TopicPartition(topic.name, n) for topic in (TRANSFERS, CREDITS) for n in range(topic.partitions)]
        return {(part.topic, part.partition): end for part, end in (await consumer.end_offsets(parts)).items()}
    finally:
        await consumer.stop()


async def _open_work(stage: Stage, ends: dict[tuple[str, int], int]) -> str:
    try:
        connection = await asyncpg.connect(stage.postgres.admin_url, timeout=5)
    except (OSError, asyncpg.PostgresError) as error:  # a session that was killed late takes all others with it
        return f"Postgres takes no connections: {type(error).__name__}"
    try:
        row = await connection.fetchrow(_OPEN)
        offsets = await connection.fetch(_OFFSETS)
    finally:
        await connection.close()
    open_ = {name: count for name, count in dict(row or {}).items() if count}
    stored = {(one["topic"], one["partition"]): one["next_offset"] for one in offsets}
    behind = {
        f"{topic}/{number}": f"{stored.get((topic, number), 0)} of {end}"
        for (topic, number), end in ends.items()
        if stored.get((topic, number), 0) < end
    }
    return ", ".join(f"{name}: {value}" for name, value in [*open_.items(), *behind.items()])


async def _snapshot(stage: Stage, still: str) -> None:
    """Ask every replica where it stands, and Postgres who waits for whom."""
    for place in stage.replicas:
        place.signal(signal.SIGUSR1)
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        connection = await asyncpg.connect(stage.postgres.admin_url, timeout=5)
        sessions = [dict(row) for row in await connection.fetch(_SESSIONS)]
        await connection.close()
        (stage.folder / "sessions.txt").write_text(still + "\n" + "\n".join(map(str, sessions)) + "\n")
    await asyncio.sleep(1)


async def _keep_tables(stage: Stage, found: Findings) -> None:
    """Copy what the violations are about beside the logs: tables and both topics."""
    connection = await asyncpg.connect(stage.postgres.admin_url)
    try:
        for table in ("effects", "failed_jobs", "consumer_offsets", "payouts", "outbox"):
            await connection.copy_from_query(
                f"select * from ledger.{table}", output=stage.folder / f"{table}.csv", format="csv", header=True
            )
    finally:
        await connection.close()
    for topic in (TRANSFERS, CREDITS):
        lines = [
            f"{one.partition}\t{one.offset}\t{one.key}\t{one.id}" for one in await read_log(stage.kafka.direct, topic)
        ]
        (stage.folder / f"{topic.name}.tsv").write_text("\n".join(lines) + "\n")
    violations: Any = [f"{kind}: {what}" for kind, shown in found.violations.items() for what in shown]
    (stage.folder / "violations.txt").write_text("\n".join(violations) + "\n")
